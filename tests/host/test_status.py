"""What an administrator asks the daemon, and who may: status, reload, and the socket behind them."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.host.conftest import HEAD, Scene, each_backend, entry, filled
from tests.lab import varlink
from tests.lab.command import Completed
from tests.lab.host import CLIENT4, PUBLIC4, Host
from tests.lab.place import wait_until
from tests.lab.release import LibvirtFirewall

URL = f"http://{PUBLIC4}:8000/"
WEB = entry("web", "8000:80", "WEB4")
FAR = entry("far", "9000", "FAR4")
NOBODY = entry("nobody", "70", "192.168.122.99")
# A group that every Debian has, and a user and groups that no one of interest has.
GROUP, GROUP_NUMBER, OTHER = "games", "60", "65534"
CONTROL = f'[control]\ngroup = "{GROUP}"\n'

# What does not depend on where the rules are is shown on one host of each release.
each_release = pytest.mark.on(LibvirtFirewall.IPTABLES, LibvirtFirewall.NFTABLES)


def command(host: Host, *words: str) -> Completed:
    return host.portfwd(*words, check=False)


def status(host: Host) -> dict[str, Any]:
    done = command(host, "status", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    content: dict[str, Any] = json.loads(done.stdout)
    return content


def states(host: Host) -> dict[str, tuple[str, str | None]]:
    return {row["listens"]: (row["state"], row["reason"]) for row in status(host)["openings"]}


def raw(*words: str) -> list[str]:
    """A program that talks to the socket by itself; users who cannot read this project's files can run it too."""
    return ["/usr/bin/python3", "-c", Path(varlink.__file__).read_text(encoding="utf-8"), *words]


def as_user(argv: Sequence[str], *groups: str) -> list[str]:
    given = ["--groups", ",".join(groups)] if groups else ["--clear-groups"]
    return ["setpriv", "--reuid", OTHER, "--regid", OTHER, *given, *argv]


def answer(done: Completed) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    content: dict[str, Any] = json.loads(done.stdout)
    return content


@pytest.mark.in_turn
@each_backend
def test_what_status_shows(shared_scene: Scene) -> None:
    scene, host = shared_scene, shared_scene.host
    daemon = scene.daemon(WEB + NOBODY)
    scene.answers(lambda: host.outside.fetch(URL), f"web {CLIENT4}")
    shown = status(host)
    rows = {row["listens"]: row for row in shown["openings"]}
    on_legacy = host.flavour.firewall is LibvirtFirewall.LEGACY
    assert shown["backend"]["name"] == ("iptables" if on_legacy else "nftables")
    assert shown["libvirt"][0]["connected"]
    assert (rows["tcp *:8000"]["state"], rows["tcp *:8000"]["leads_to"]) == ("active", "192.168.122.10:80")
    assert rows["tcp *:8000"]["connections"] >= 1
    assert rows["tcp *:8000"]["connections_since"]
    assert (rows["tcp *:70"]["state"], rows["tcp *:70"]["reason"]) == ("waiting", "libvirt knows no such domain")

    assert command(host, "status", "nobody").stdout.count(" tcp ") == 1
    missed = command(host, "status", "web", "some\nbody")
    assert (missed.returncode, missed.stdout.count(" tcp ")) == (1, 1)
    assert missed.stderr == "kvm-portfwd: nothing in the configuration is for some\\nbody\n"

    scene.wipe()
    daemon.wait_log("^restored web: tcp")
    wait_until(lambda: bool(status(host)["restored"]), "it is remembered")
    assert status(host)["restored"][0]["what"] == "web: tcp *:8000 -> 192.168.122.10:80"

    host.write("/etc/portfwd.toml", HEAD + "nonsense = 1\n")
    daemon.reload()
    refused = status(host)["configuration"]["refused_problems"]
    assert [(problem["file"], problem["line"]) for problem in refused] == [("/etc/portfwd.toml", 3)]
    text = command(host, "status").stdout
    assert re.search(r"^active +web +tcp \*:8000 +192\.168\.122\.10:80 +\d+ ", text, re.MULTILINE)
    assert re.search(r"^waiting +nobody +tcp \*:70 +libvirt knows no such domain ", text, re.MULTILINE)
    assert re.search(r"^restored +.*web: tcp", text, re.MULTILINE)
    assert re.search(r"^ +/etc/portfwd\.toml:3: ", text, re.MULTILINE)


@pytest.mark.in_turn
@each_release
def test_what_the_host_refuses(shared_scene: Scene) -> None:
    host = shared_scene.host
    host.run("sysctl", "-w", "net.ipv4.ip_forward=0")
    try:
        shared_scene.daemon(WEB, HEAD + "ip_forward = false\n")
        assert states(host)["tcp *:8000"] == ("refused", "IPv4 forwarding is off on this host")
    finally:
        host.run("sysctl", "-w", "net.ipv4.ip_forward=1")


@pytest.mark.in_turn
@each_release
def test_what_the_kernel_refuses(shared_scene: Scene) -> None:
    shared_scene.daemon(WEB + '[[nat]]\ndomain = "far"\naddress = "FAR4"\npublic = "198.51.100.9"\nassign = "eth9"\n')
    state, reason = states(shared_scene.host)["all of 198.51.100.9"]
    assert (state, reason) == ("refused", "198.51.100.9 is not assigned to eth9: there is no such interface")
    assert states(shared_scene.host)["tcp *:8000"] == ("active", None)


@pytest.mark.in_turn
@each_release
def test_reload_waits_and_tells_what_came_of_it(shared_scene: Scene) -> None:
    scene, host = shared_scene, shared_scene.host
    scene.daemon(WEB)
    host.write("/etc/portfwd.toml", HEAD + filled(WEB + entry("far", "9001:80", "FAR4") + NOBODY))
    done = command(host, "reload")
    assert "9001" in host.own_rules()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "/etc/portfwd.toml loaded: 2 active, 1 waiting, 0 refused\n"

    host.write("/etc/portfwd.toml", HEAD + "nonsense = 1\n[[forward]]\n")
    done = command(host, "reload")
    assert (done.returncode, done.stdout) == (78, "")
    lines = done.stderr.splitlines()
    assert [line.split(": ")[0] for line in lines[:-1]] == ["/etc/portfwd.toml:3", *["/etc/portfwd.toml:4"] * 2]
    assert lines[-1] == "kvm-portfwd: configuration refused; the old one stays in force"
    assert "9001" in host.own_rules()


@pytest.mark.in_turn
def test_without_a_daemon(shared_scene: Scene) -> None:
    """What is left in the kernel is shown as it is, and what to do."""
    scene, host = shared_scene, shared_scene.host
    daemon = scene.daemon(WEB + NOBODY)
    scene.answers(lambda: host.outside.fetch(URL), f"web {CLIENT4}")
    assert daemon.terminate() == 0
    assert host.run("ls", "/run/kvm-portfwd").stdout.find("control.sock") < 0
    host.write("/etc/portfwd.toml", HEAD + filled(WEB + NOBODY + FAR))
    done = command(host, "status")
    assert done.returncode == 1
    assert done.stderr == "kvm-portfwd: the daemon is not running; start it with: systemctl start kvm-portfwd\n"
    assert re.search(r"^active +web +tcp \*:8000 +192\.168\.122\.10:80 +[1-9]", done.stdout, re.MULTILINE)
    assert re.search(r"^waiting +far +tcp \*:9000 +not in the kernel", done.stdout, re.MULTILINE)
    assert re.search(r"^waiting +nobody +tcp \*:70 +libvirt knows no such domain", done.stdout, re.MULTILINE)
    assert json.loads(command(host, "status", "--json").stdout)["daemon"] is None
    done = command(host, "reload")
    assert (done.returncode, done.stdout) == (1, "")
    assert "the daemon is not running" in done.stderr


@pytest.mark.in_turn
@each_release
def test_it_is_shown_again_when_it_changes(shared_scene: Scene) -> None:
    scene = shared_scene
    scene.daemon(WEB)
    watching = scene.host.popen(scene.host.python, "-m", "fwdaemon", "status", "--watch")
    changes = scene.host.popen(*raw("Watch", "more"))
    watching.wait_line(r"^active +web +tcp \*:8000")
    changes.wait_line("changes")
    seen = len(watching.lines())
    scene.wipe()
    watching.wait_line("^restored +.*web: tcp", start=seen)
    changes.wait_line('"restored"')
    scene.web.stop()
    try:
        watching.wait_line(r"^waiting +web +tcp \*:8000 +.*not running", start=seen)
    finally:
        scene.web.start()
    told = json.loads(changes.wait_line('"removed"').text)
    assert told["continues"]
    (change,) = told["parameters"]["changes"]
    assert (change["owner"], change["listens"], change["leads_to"]) == ("web", "tcp *:8000", "192.168.122.10:80")
    watching.stop()
    changes.stop()


@pytest.mark.in_turn
@each_release
def test_members_of_the_group_may_read_and_only_root_may_reload(shared_scene: Scene) -> None:
    host = shared_scene.host
    shared_scene.daemon(WEB, HEAD + CONTROL)
    sock = "/run/kvm-portfwd/control.sock"
    wait_until(lambda: host.run("stat", "-c", "%a %U %G", sock).stdout == "660 root root\n", "the group may connect")

    member = answer(host.run(*as_user(raw("Status"), "100", GROUP_NUMBER)))
    assert member["parameters"]["counts"]["active"] == 1
    refused = answer(host.run(*as_user(raw("Reload"), GROUP_NUMBER)))
    assert refused == {"error": "org.varlink.service.PermissionDenied", "parameters": {}}
    stranger = host.run(*as_user(raw("Status")), check=False)
    assert "PermissionError" in stranger.stderr
    # Nor does the mode of a file alone let anyone in.
    host.run("chmod", "666", sock)
    refused = answer(host.run(*as_user(raw("Status"))))
    assert refused == {"error": "org.varlink.service.PermissionDenied", "parameters": {}}

    # The group may be another one after a reload.
    host.write("/etc/portfwd.toml", HEAD + '[control]\ngroup = "root"\n' + filled(WEB))
    assert command(host, "reload").returncode == 0
    wait_until(
        lambda: "PermissionError" in host.run(*as_user(raw("Status"), GROUP_NUMBER), check=False).stderr,
        "it is another one",
    )


@pytest.mark.in_turn
@each_release
def test_a_group_that_does_not_exist_is_no_error(shared_scene: Scene) -> None:
    host = shared_scene.host
    daemon = shared_scene.daemon(WEB, HEAD + '[control]\ngroup = "no such group"\n')
    daemon.wait_log("^warning: there is no group 'no such group', so only root may ask for the status")
    assert host.run("stat", "-c", "%a", "/run/kvm-portfwd/control.sock").stdout == "600\n"
    assert states(host)["tcp *:8000"] == ("active", None)


@pytest.mark.in_turn
@each_release
def test_clients_that_never_listen_delay_nobody(shared_scene: Scene) -> None:
    scene, host = shared_scene, shared_scene.host
    daemon = scene.daemon(WEB)
    scene.answers(lambda: host.outside.fetch(URL), f"web {CLIENT4}")
    deaf = host.popen(*raw("Status", "deaf"))
    deaf.wait_line("^deaf$")
    assert states(host)["tcp *:8000"] == ("active", None)
    scene.wipe()
    daemon.wait_log("^restored web: tcp")
    scene.answers(lambda: host.outside.fetch(URL), f"web {CLIENT4}")
    deaf.stop()
    assert "Traceback" not in daemon.process.text()


@pytest.mark.in_turn
@each_release
def test_there_is_one_daemon_only(shared_scene: Scene) -> None:
    scene, host = shared_scene, shared_scene.host
    first = scene.daemon(WEB)
    done = command(host, "run")
    assert done.returncode == 1
    assert re.fullmatch(r"kvm-portfwd: another kvm-portfwd is already running on this host.*\n", done.stderr)
    assert states(host)["tcp *:8000"] == ("active", None)
    # Files can be deleted, and their directory. Of records, those are made again that have something to hold.
    listed, files = ("ls", "-A", "/run/kvm-portfwd"), {"control.lock", "control.sock", "hairpin-ports.json"}
    assert files <= set(host.run(*listed).stdout.split())
    host.run("rm", "-r", "/run/kvm-portfwd")
    assert re.search("another kvm-portfwd is already running", command(host, "run").stderr)
    first.wait_log("the control socket was removed, and has been made again")
    wait_until(lambda: command(host, "status").returncode == 0, "the socket is there again")
    wait_until(lambda: files <= set(host.run(*listed).stdout.split()), f"there is again {files}")
    assert states(host)["tcp *:8000"] == ("active", None)
    # What a killed one leaves there is in no one's way.
    first.kill()
    assert host.run("ls", "/run/kvm-portfwd").stdout.find("control.sock") >= 0
    scene.daemon(WEB)
    assert states(host)["tcp *:8000"] == ("active", None)


@pytest.mark.in_turn
@each_release
def test_on_a_terminal(shared_scene: Scene) -> None:
    host = shared_scene.host
    shared_scene.daemon(WEB + NOBODY)
    on_terminal = "import pty, sys; sys.exit(pty.spawn(sys.argv[1:]) >> 8)"
    asked = ["/usr/bin/python3", "-c", on_terminal, host.python, "-m", "fwdaemon", "status"]
    for width in (80, 200):
        shown = host.run("env", f"COLUMNS={width}", "TERM=xterm", *asked).stdout
        assert "\x1b[32mactive" in shown
        lines = re.sub(r"\x1b\[[0-9;]*m", "", shown).splitlines()
        assert max(map(len, lines)) <= width
        assert any(re.match(r"active +web +tcp \*:8000 +192\.168\.122\.10:80 +\d+", line) for line in lines)
        assert any("/etc/portfwd.toml:" in line for line in lines if line.startswith("active")) == (width == 200)


@pytest.mark.on(LibvirtFirewall.NFTABLES)
def test_systemds_own_program_speaks_with_it(shared_scene: Scene) -> None:
    host = shared_scene.host
    shared_scene.daemon(WEB)
    varlinkctl = ["varlinkctl", "--json=short"]
    address, interface = "unix:/run/kvm-portfwd/control.sock", "kvm.portfwd.Manager"
    assert json.loads(host.run(*varlinkctl, "info", address).stdout)["product"] == "kvm-portfwd"
    # It reads the description by itself, and would not show what it does not understand.
    assert "method Watch()" in host.run("varlinkctl", "introspect", address, interface).stdout
    shown = json.loads(host.run(*varlinkctl, "call", address, f"{interface}.Status", "{}").stdout)
    assert shown["counts"]["active"] == 1
    assert json.loads(host.run(*varlinkctl, "call", address, f"{interface}.Reload", "{}").stdout)["failure"] is None

    def asked(method: str, **parameters: object) -> Any:
        return json.loads(
            host.run(*varlinkctl, "call", address, f"{interface}.{method}", json.dumps(parameters)).stdout
        )

    shared_scene.answers(lambda: host.outside.fetch(URL), f"web {CLIENT4}")
    explained = asked("Explain", connection=f"{PUBLIC4}:8000", source=CLIENT4)
    assert (explained["works"], {step["state"] for step in explained["steps"]}) == (True, {"ok"})
    assert asked("Plan")["changes"] is False
    draft = {"drop_in": "more.toml", "text": filled(FAR)}
    assert [opening["domain"] for opening in asked("Plan", **draft)["add"]] == ["far"]
    assert asked("Check", **draft)["problems"] == []
    assert [problem["line"] for problem in asked("Check", drop_in="more.toml", text="\nx = 1")["problems"]] == [2]
    opened = asked("Open", domain="web", ports=["8005:80"], sources=[f"{CLIENT4}/32"], seconds=600)
    assert [(row["listens"], row["opened_ports"]) for row in opened["openings"]] == [("tcp *:8005", "8005:80")]
    shared_scene.answers(lambda: host.outside.fetch(f"http://{PUBLIC4}:8005/"), f"web {CLIENT4}")
    assert asked("Close", domain="web", ports=["8005:80"]) == {"closed": ["8005:80"]}
    shared_scene.refused(lambda: host.outside.fetch(f"http://{PUBLIC4}:8005/"))
    named = asked("Inventory")
    assert {"web", "far"} <= {domain["name"] for domain in named["domains"] if domain["running"]}
    assert {"address": PUBLIC4, "interface": "eth0", "outside": True} in named["addresses"]

    host.write("/etc/portfwd.toml", HEAD + "nonsense = 1\n")
    refused = host.run(*varlinkctl, "call", address, f"{interface}.Reload", "{}", check=False)
    assert refused.returncode != 0
    assert "ConfigurationRefused" in refused.stderr
    watching = host.popen(*varlinkctl, "--more", "call", address, f"{interface}.Watch", "{}")
    watching.wait_line("changes")
    shared_scene.wipe()
    watching.wait_line("restored")
    watching.stop()
