"""Real fail2ban and CrowdSec's real bouncers ban by the files of etc/examples.

fail2ban with nftables is shown on a whole machine (tests/system/test_firewalls.py), by the package of its own release.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL

import pytest

from tests.host.conftest import HEAD, Scene, each_backend, entry
from tests.lab import image
from tests.lab.fail2ban import DATABASE, are_aged
from tests.lab.host import CLIENT4, CLIENT4_SECOND, PUBLIC4, SOURCE
from tests.lab.place import Process, wait_until
from tests.lab.release import LibvirtFirewall

EXAMPLES = SOURCE / "etc/examples"
URL = f"http://{PUBLIC4}:8000/"
LOG = "/var/log/guests/web1/auth.log"
# A service of the guest at which every login fails, and its log; the filter sshd of fail2ban knows the line.
LOGINS = f"""
import socket, time
server, log = socket.create_server(("", 2222)), open("{LOG}", "a", buffering=1)
print("ready", flush=True)
while True:
    connection, (client, port) = server.accept()
    with connection:
        when = time.strftime("%b %d %H:%M:%S")
        log.write(f"{{when}} web1 sshd[7]: Failed password for root from {{client}} port {{port}} ssh2\\n")
        connection.sendall(b"no")
"""
SOCKET = ("-s", "/run/fail2ban.sock", "-p", "/run/fail2ban.pid")
# Of the jail in the examples.
BANTIME_S = 3600
# Of CrowdSec's local API, what bouncers ask for: what a file says.
DECISIONS = "/run/decisions.json"
CROWDSEC = f"""
import http.server, pathlib
class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = pathlib.Path("{DECISIONS}").read_bytes()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
server = http.server.HTTPServer(("127.0.0.1", 8080), Answers)
print("ready", flush=True)
server.serve_forever()
"""
# The package's own settings, but that a test does not wait for ten seconds, and sees what is said.
FASTER = (("update_frequency: 10s", "update_frequency: 1s"), ("log_mode: file", "log_mode: stdout"))


@pytest.fixture
def scene(shared_scene: Scene) -> Scene:
    """The guests of the module, which no ban changes."""
    return shared_scene


def configuration(name: str) -> str:
    entries = entry("web", "8000:80 2222", "WEB4")
    return f'{entries}\n[[set]]\nname = "{name}"\nexternal = true\n'


def begin(scene: Scene, name: str) -> None:
    scene.daemon(configuration(name), f'{HEAD}deny = ["set:{name}"]\n')
    wait_until(lambda: is_served(scene), "the client is served")


def is_served(scene: Scene, source: str = CLIENT4) -> bool:
    return scene.host.outside.fetch(URL, source=source, timeout=0.5).answered


def fails_to_log_in(scene: Scene) -> bool:
    return scene.host.outside.tcp(PUBLIC4, 2222, timeout=1).text == "no"


def lasts(scene: Scene, seconds: str) -> bool:
    """Whether the client is banned for so long, which is a pattern."""
    listed = scene.host.run("ipset", "list", "KVMPF_banned_4").stdout
    return bool(re.search(f"^{CLIENT4} timeout {seconds} *$", listed, re.MULTILINE))


def is_legacy(scene: Scene) -> bool:
    return scene.host.flavour.firewall is LibvirtFirewall.LEGACY


@contextmanager
def running(scene: Scene, *argv: str, env: Mapping[str, str] | None = None, said: str = "") -> Iterator[Process]:
    program = scene.host.place.popen(argv, env=env)
    try:
        if said:
            program.wait_line(said)
        yield program
    finally:
        program.stop()


@dataclass(frozen=True, slots=True)
class Fail2ban:
    """fail2ban with the jail of the examples, where it is no service."""

    scene: Scene
    root: Path

    @contextmanager
    def running(self) -> Iterator[Process]:
        """Start it, and stop it unless it was killed: then it takes no ban back."""
        with running(self.scene, *self._words("server", "-xf", *SOCKET, "start"), env=self._libraries) as program:
            program.wait_line("Jail 'guest-ssh' started")
            yield program

    def set(self, *words: str) -> None:
        """Change something in the jail."""
        words = self._words("client", *SOCKET, "set", "guest-ssh", *words)
        self.scene.host.place.run(words, env=self._libraries)

    @property
    def _libraries(self) -> dict[str, str]:
        return {"PYTHONPATH": f"{self.root}/usr/lib/python3/dist-packages"}

    def _words(self, program: str, *words: str) -> tuple[str, ...]:
        return ("/usr/bin/python3", f"{self.root}/usr/bin/fail2ban-{program}", *words)


@pytest.fixture
def fail2ban(scene: Scene) -> Iterator[Fail2ban]:
    """What it needs: its files, ours, a set, and the guest's service."""
    host, root = scene.host, image.banners()
    host.run("rm", "-rf", "/etc/fail2ban")
    host.run("cp", "-r", f"{root}/etc/fail2ban", "/etc/fail2ban")
    host.run("cp", "-r", f"{EXAMPLES}/fail2ban/.", "/etc/fail2ban")
    action = "kvm-portfwd-ipset[set=banned]"
    host.write("/etc/fail2ban/jail.local", f"[sshd]\nenabled = false\n[guest-ssh]\nenabled = true\naction = {action}\n")
    host.write("/etc/fail2ban/fail2ban.local", f"[Definition]\ndbfile = {DATABASE}\nlogtarget = STDOUT\n")
    for file in (LOG, DATABASE):
        host.run("mkdir", "-p", file.rpartition("/")[0])
    begin(scene, "banned")
    server = scene.web.place.popen(["python3", "-c", LOGINS])
    server.wait_line("ready")
    yield Fail2ban(scene, root)
    server.stop()


@pytest.mark.on(LibvirtFirewall.LEGACY)
def test_three_failed_logins_are_a_ban_by_fail2ban_that_ends_on_time_without_it_too(
    scene: Scene, fail2ban: Fail2ban
) -> None:
    with fail2ban.running() as program:
        assert all(fails_to_log_in(scene) for _ in range(3))
        wait_until(lambda: not fails_to_log_in(scene), "the client is banned")
        assert not is_served(scene)
        assert is_served(scene, CLIENT4_SECOND)
        wait_until(lambda: are_aged(scene.host, BANTIME_S - 600), "the ban is written down, and older from now on")
        scene.host.run("truncate", "--size=0", LOG)
        program.stop(SIGKILL)
    assert not is_served(scene)
    with fail2ban.running() as program:
        wait_until(lambda: lasts(scene, "[56][0-9]{2}"), "what is left of the ban is restored")
        fail2ban.set("unbanip", CLIENT4)
        wait_until(lambda: is_served(scene), "the ban is over")
        fail2ban.set("bantime", "3")
        fail2ban.set("banip", CLIENT4)
        wait_until(lambda: lasts(scene, "[0-5]"), "the client is banned for a moment")
        program.stop(SIGKILL)
    wait_until(lambda: is_served(scene), "the ban is over without it")


def decide(scene: Scene, new: tuple[str, ...] = (), deleted: tuple[str, ...] = ()) -> None:
    """Have CrowdSec decide whom to ban, and of whom not any more."""
    common = {"duration": "1h", "id": 1, "origin": "cscli", "scenario": "by hand", "scope": "Ip", "type": "ban"}
    told = {"new": new, "deleted": deleted}
    scene.host.write(
        DECISIONS, json.dumps({key: [common | {"value": each} for each in of] for key, of in told.items()})
    )


@each_backend
def test_whom_crowdsec_decides_to_ban_is_not_served_until_it_takes_that_back(scene: Scene) -> None:
    """By its set-only mode in ipsets, and by what its other bouncer calls where the rules are in nftables."""
    host, root = scene.host, image.banners()
    bouncer = "crowdsec-firewall-bouncer" if is_legacy(scene) else "crowdsec-custom-bouncer"
    written = f"/etc/crowdsec/bouncers/{bouncer}.yaml"
    settings = (root / written.lstrip("/")).read_text(encoding="utf-8").replace("${API_KEY}", "key")
    for packaged, faster in FASTER:
        assert packaged in settings
        settings = settings.replace(packaged, faster)
    host.write(written, settings)
    host.run("cp", f"{EXAMPLES}/crowdsec/{bouncer}.yaml.local", f"{written}.local")
    host.run("install", f"{EXAMPLES}/crowdsec/kvm-portfwd-ban", "/usr/local/lib/kvm-portfwd-ban")
    begin(scene, "crowdsec")
    decide(scene, new=(CLIENT4,))
    with (
        running(scene, "python3", "-c", CROWDSEC, said="ready"),
        running(scene, f"{root}/usr/bin/{bouncer}", "-c", written),
    ):
        wait_until(lambda: not is_served(scene), "the client is banned")
        assert is_served(scene, CLIENT4_SECOND)
        decide(scene, deleted=(CLIENT4,))
        wait_until(lambda: is_served(scene), "the ban is over")
