"""The journal tells a guest's whole story, by fields as well as by lines."""

import json
import signal
from collections.abc import Iterator

import pytest

from fwdaemon.audit.journal import MESSAGE_IDS
from tests.conftest import MakeLxcGuest, MakeNetwork
from tests.host.conftest import HEAD, Scene, each_backend, each_libvirt, entry, filled
from tests.lab.daemon import CONFIG, Daemon
from tests.lab.domain import Link
from tests.lab.host import CLIENT4, PUBLIC4, SOURCE, Host
from tests.lab.place import Process, wait_until

pytestmark = each_libvirt

NAME = 'web "1"\t--comment'
STATUS = ("-m", "fwdaemon", "status", "--json")
JOURNALED = str(SOURCE / "tests/lab/journaled.py")


def entries(host: Host, *matches: str) -> list[dict[str, str]]:
    """What the journal holds of us, the oldest first."""
    listed = host.run("journalctl", "--output=json", "--no-pager", "-t", "kvm-portfwd", *matches).stdout
    return [json.loads(line) for line in listed.splitlines()]


def actions(host: Host, *matches: str) -> list[str]:
    return [item.get("PORTFWD_ACTION", "") for item in entries(host, *matches)]


@pytest.fixture
def journald(host: Host) -> Iterator[Process]:
    """A journal of the host's own; the kernel's messages are the machine's."""
    host.write("/run/systemd/journald.conf.d/lab.conf", "[Journal]\nReadKMsg=no\nStorage=volatile\n")
    host.run("mkdir", "-p", "/run/systemd/journal")
    running = host.popen("/usr/lib/systemd/systemd-journald")
    wait_until(lambda: host.run("test", "-S", "/run/systemd/journal/stdout", check=False).returncode == 0, "journald")
    yield running
    running.stop()


@pytest.mark.in_turn
@pytest.mark.usefixtures("journald")
def test_the_journal_tells_a_guest_s_story(host: Host, network: MakeNetwork, lxc_guest: MakeLxcGuest) -> None:
    network("default", "192.168.122.0/24")
    guest = lxc_guest(NAME, Link("default", ("192.168.122.10/24",)))
    config = (
        HEAD + 'on_stop = "remove"\n' + entry("NAME", "8000:80", "192.168.122.10").replace('"NAME"', json.dumps(NAME))
    )
    host.write("/etc/portfwd.toml", config)
    daemon = host.popen(host.python, JOURNALED, host.python, "-m", "fwdaemon", "run")
    of_guest = f"PORTFWD_DOMAIN={NAME}"
    try:
        wait_until(lambda: actions(host, of_guest) == ["added"], "the start is in the journal")
        guest.stop()
        wait_until(lambda: actions(host, of_guest) == ["added", "removed"], "the end is in the journal")
        host.write("/etc/portfwd.toml", "[daemon]\nresync = 1\n")
        host.run("pkill", "-HUP", "-f", "--", "-m fwdaemon run")
        wait_until(lambda: "refused" in actions(host), "the refusal is in the journal")
    finally:
        daemon.stop()
    added, removed = entries(host, of_guest)
    assert added["MESSAGE_ID"] == MESSAGE_IDS["added"]
    assert (added["PORTFWD_LISTEN"], added["PORTFWD_TARGET"]) == ("tcp *:8000", "192.168.122.10:80")
    assert added["PRIORITY"] == "6"
    assert removed["PORTFWD_CAUSE"] in removed["MESSAGE"]
    assert "stopped (destroyed)" in removed["PORTFWD_CAUSE"]
    assert all(item["MESSAGE"].isprintable() for item in (added, removed))
    problem, _ = entries(host, f"MESSAGE_ID={MESSAGE_IDS['refused']}")
    assert problem["PRIORITY"] == "3"
    assert problem["MESSAGE"].startswith("/etc/portfwd.toml:2: ")


# Fills the queue of a journal that reads nothing, by as many sockets as it takes, as each has a bound of its own. It
# prints how many messages there was room for, and ends once a socket has none for its first.
FILLS = """
import socket
senders, sent, before = [], 0, -1
while sent > before:
    before = sent
    senders.append(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
    senders[-1].connect("/run/systemd/journal/socket")
    try:
        while True:
            senders[-1].send(b"MESSAGE=no room\\n", socket.MSG_DONTWAIT)
            sent += 1
    except BlockingIOError:
        pass
print(sent)
"""


def room_left(host: Host) -> int:
    """Fill the journal's queue; gives how many messages there was room for."""
    return int(host.run(host.python, "-c", FILLS).stdout)


# Opens more connections at once than the log of connections may write: a datagram from a new port is one.
BURST = f"""
import socket
for _ in range(3000):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"?", ("{PUBLIC4}", 5300))
"""


def lost_connections(host: Host) -> int:
    """How many begins and ends of connections were not logged, as the daemon counts them."""
    number: int = json.loads(host.run(host.python, *STATUS, check=False).stdout)["lost_connection_events"]
    return number


def journaled_daemon(host: Host, config: str) -> Daemon:
    """Start the daemon as a service whose log is the journal, with a watchdog; it is ready."""
    service = ("env", "WATCHDOG_USEC=1000000", host.python, JOURNALED)
    return host.daemon(config, through=service)


def is_fed(daemon: Daemon) -> None:
    """Wait until the daemon says again that it is alive."""
    daemon.wait_told("^WATCHDOG=1$", start=len(daemon.told()))


@each_backend
def test_a_journal_that_takes_nothing_holds_up_nothing(scene: Scene, journald: Process) -> None:
    host, url = scene.host, f"http://{PUBLIC4}:8000/"
    before = len(actions(host))
    good = HEAD + 'on_stop = "remove"\n' + filled(entry("web", "8000:80 5300/udp", "WEB4", "log = true"))
    daemon = journaled_daemon(host, good)
    try:
        scene.answers(lambda: host.outside.fetch(url), f"web {CLIENT4}")
        wait_until(lambda: {"added", "connected"} <= {*actions(host)[before:]}, "the start is in the journal")
        assert lost_connections(host) == 0
        journald.send(signal.SIGSTOP)
        # A line for each of these: more than the kernel keeps for a journal that reads none.
        host.write(CONFIG, "[daemon]\n" + "".join(f"key{number} = 1\n" for number in range(900)))
        daemon.sighup()
        wait_until(
            lambda: "key899" in host.run(host.python, *STATUS, check=False).stdout, "the status tells the refusal"
        )
        host.outside.run([host.python, "-c", BURST])
        wait_until(lambda: lost_connections(host) > 0, "what is not logged is counted")
        scene.wipe()
        scene.answers(lambda: host.outside.fetch(url), f"web {CLIENT4}")
        is_fed(daemon)
        journald.send(signal.SIGCONT)
        wait_until(lambda: "restored" in actions(host)[before:], "the journal tells of the wipe")
    finally:
        journald.send(signal.SIGCONT)
        assert daemon.terminate() == 0
    wait_until(lambda: "unlogged" in actions(host)[before:], "the journal tells how many connections were not logged")
    told = actions(host)[before:]
    assert told.count("refused") >= 900
    assert told.index("restored") > told.index("refused")


@each_backend
def test_a_journal_that_takes_nothing_holds_up_no_restart(scene: Scene, journald: Process) -> None:
    """Nothing waits for it: not the daemon that is killed, nor the next one's start, repair, watchdog and end."""
    host, url = scene.host, f"http://{PUBLIC4}:8000/"
    config = HEAD + filled(entry("web", "8000:80", "WEB4"))
    killed = journaled_daemon(host, config)
    scene.answers(lambda: host.outside.fetch(url), f"web {CLIENT4}")
    wait_until(lambda: "added" in actions(host), "the start is in the journal")
    journald.send(signal.SIGSTOP)
    try:
        assert room_left(host) > 0
        killed.kill()
        scene.wipe()
        scene.refused(lambda: host.outside.fetch(url, timeout=0.3))
        daemon = journaled_daemon(host, config)
        for _ in range(2):
            scene.answers(lambda: host.outside.fetch(url), f"web {CLIENT4}")
            is_fed(daemon)
            scene.wipe()
        scene.answers(lambda: host.outside.fetch(url), f"web {CLIENT4}")
        assert room_left(host) == 0, "nothing has been taken meanwhile"
    finally:
        journald.send(signal.SIGCONT)
    wait_until(lambda: "restored" in actions(host), "the journal tells of the wipes")
    assert daemon.terminate() == 0
    host.portfwd("flush")
