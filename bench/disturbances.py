"""What may go on while rules are wiped: each disturbance with the host it wants."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final, TypeAlias

from bench import flooding
from bench.connections import tracked, without_entry
from bench.forwards import guest_address
from bench.scene import Scene
from bench.wiped import PATIENCE_S, Wiped
from tests.lab.command import LabError
from tests.lab.daemon import Daemon
from tests.lab.domain import Link
from tests.lab.host import SOURCE
from tests.lab.lxc import LxcGuest
from tests.lab.place import Place

# Those of the client that measures count too, and the kernel tracks 262,144.
CONNECTIONS: Final = 250_000
ELEMENTS: Final = 100_000
# How long a disturbance lasts before the wipe.
_LEAD_S: Final = 1.0
_FLOODER: Final = "flooder"
_JOURNALED: Final = str(SOURCE / "tests/lab/journaled.py")
_JOURNAL_SOCKET: Final = "/run/systemd/journal/stdout"
_FOREIGN_TABLE: Final = """
table ip foreign {{
	set listed {{ type ipv4_addr; elements = {{ {elements} }}; }}
	chain prerouting {{ type nat hook prerouting priority -90; tcp dport 7 ip saddr @listed dnat to 192.168.122.9; }}
}}
"""
_TOGGLED: Final = """
while :; do
	nft add element ip foreign listed { 10.255.0.1 }; sleep 0.25
	nft delete element ip foreign listed { 10.255.0.1 }; sleep 0.25
done
"""
# A rule of another program's, so that a gate is needed in iptables-legacy too.
_LEGACY_RULE: Final = ("iptables-legacy", "-w", "-A", "FORWARD", "-s", "203.0.113.250", "-j", "DROP")
_SUBNET6: Final = "2001:db8:76::/64"
_GUEST6: Final = "2001:db8:76::10"
_ENTRY6: Final = f'\n[[forward]]\ndomain = "forwarded6"\naddress = "{_GUEST6}"\nports = ["9006:80"]\n'
_HOLD: Final = "exec 9>>/run/xtables.lock && flock 9 && echo ready && exec sleep 9999"

Begin: TypeAlias = Callable[[Wiped], AbstractContextManager[None]]
"""Starts a disturbance that ends with its block."""


def _nothing(_scene: Scene) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Disturbance:
    """`prepare` is done before `start` starts the daemon.

    With `ours_only`, the wipe takes our table alone, since one of everything would take what disturbs. `nftables_only`
    means nothing where our rules are in iptables-legacy, or keeps others from changing them. What the guest at `listed`
    answers is listed by the daemon meanwhile.
    """

    label: str
    begin: Begin
    prepare: Callable[[Scene], object] = _nothing
    start: Callable[[Scene, str], Daemon] = Scene.daemon
    ours_only: bool = False
    nftables_only: bool = False
    listed: str = ""


@contextmanager
def undisturbed(_wiped: Wiped) -> Iterator[None]:
    """Let nothing else happen."""
    yield


def carrying_entry_removed(wiped: Wiped) -> AbstractContextManager[None]:
    """Track very many connections, and take away the forward that they came through."""
    return _entry_removed(wiped, 0)


def other_entry_removed(wiped: Wiped) -> AbstractContextManager[None]:
    """Track as many, and take away a forward that none of them came through."""
    return _entry_removed(wiped, 1)


@contextmanager
def _entry_removed(wiped: Wiped, number: int) -> Iterator[None]:
    with tracked(wiped.scene, CONNECTIONS):
        before = len(wiped.daemon.log_lines())
        wiped.daemon.reload_with(without_entry(wiped.config, number), PATIENCE_S)
        wiped.daemon.wait_log("^removed |flapping ", PATIENCE_S, start=before)
        yield
    wiped.daemon.reload_with(wiped.config, PATIENCE_S)


@contextmanager
def other_entry_removed6(wiped: Wiped) -> Iterator[None]:
    """Track as many of IPv6, and take away a forward of another guest: the kernel cannot pick from these by guest."""
    before = len(wiped.daemon.log_lines())
    wiped.daemon.reload_with(wiped.config + _ENTRY6, PATIENCE_S)
    wiped.daemon.wait_log("^added forwarded6|flapping ", PATIENCE_S, start=before)
    with tracked(wiped.scene, CONNECTIONS, six=True):
        before = len(wiped.daemon.log_lines())
        wiped.daemon.reload_with(wiped.config, PATIENCE_S)
        wiped.daemon.wait_log("^removed |flapping ", PATIENCE_S, start=before)
        yield


def define_guest6(scene: Scene) -> None:
    """Start a guest with an address of IPv6, on a network of its own."""
    scene.host.libvirt.define_network("six", None, _SUBNET6)
    LxcGuest(scene.host, "forwarded6", Link("six", (f"{_GUEST6}/64",))).start()


@contextmanager
def counted(wiped: Wiped) -> Iterator[None]:
    """Have a client ask for the status when there are many connections, which the daemon then counts."""
    with tracked(wiped.scene, CONNECTIONS):
        asking = wiped.scene.host.popen(wiped.scene.host.python, "-m", "bench.asking")
        asking.wait_line("^asking$")
        yield
        if not asking.running:
            raise LabError("they were counted before the wipe was healed")
        asking.wait(PATIENCE_S)


def start_with_stuck_journal(scene: Scene, config: str) -> Daemon:
    """Start the daemon as systemd would, with its lines going to a journal that reads none."""
    host = scene.host
    host.write("/run/systemd/journald.conf.d/lab.conf", "[Journal]\nReadKMsg=no\nStorage=volatile\n")
    host.run("mkdir", "-p", "/run/systemd/journal")
    journal = host.popen("/usr/lib/systemd/systemd-journald")
    host.run("sh", "-c", f"until test -S {_JOURNAL_SOCKET}; do sleep 0.05; done")
    daemon = scene.daemon(config, through=(host.python, _JOURNALED))
    journal.send(signal.SIGSTOP)
    return daemon


@contextmanager
def _running(place: Place, *argv: str) -> Iterator[None]:
    """Have a program run that says when it is ready."""
    program = place.popen(argv)
    program.wait_line("^ready$")
    time.sleep(_LEAD_S)
    try:
        yield
    finally:
        program.stop()


def lock_held(wiped: Wiped) -> AbstractContextManager[None]:
    """Hold iptables' lock."""
    return _running(wiped.scene.host.place, "sh", "-c", _HOLD)


def load_foreign_table(scene: Scene) -> None:
    """Load a table of others that translates, with a large set."""
    elements = ", ".join(str(IPv4Address("10.0.0.0") + number) for number in range(ELEMENTS))
    scene.host.run("nft", "-f", "-", stdin=_FOREIGN_TABLE.format(elements=elements))


def foreign_set_changes(wiped: Wiped) -> AbstractContextManager[None]:
    """Change one element of that set twice in half a second."""
    return _running(wiped.scene.host.place, "sh", "-c", f"echo ready; {_TOGGLED}")


def define_flooder(scene: Scene) -> None:
    """Start a guest on a network of its own that is large enough for many addresses."""
    scene.host.libvirt.define_network("flooded", flooding.SUBNET4, flooding.SUBNET6, dhcp=True)
    LxcGuest(scene.host, _FLOODER, Link("flooded")).start()


def flooded(wiped: Wiped) -> AbstractContextManager[None]:
    """Have that guest send about three thousand packets a second."""
    flooder = LxcGuest(wiped.scene.host, _FLOODER, Link("flooded"))
    return _running(flooder.place, wiped.scene.host.python, "-m", "bench.flooding", flooder.mac())


UNDISTURBED: Final = Disturbance("undisturbed", undisturbed)
OURS_ALONE: Final = Disturbance(
    "undisturbed, our table alone is deleted", undisturbed, ours_only=True, nftables_only=True
)
TRACKED: Final = Disturbance(
    f"{CONNECTIONS:,} tracked connections, one other forward removed", other_entry_removed, listed=guest_address(1)
)
TRACKED6: Final = Disturbance(
    f"{CONNECTIONS:,} tracked connections of IPv6, one other forward removed",
    other_entry_removed6,
    define_guest6,
    listed=_GUEST6,
)
CARRYING: Final = Disturbance(
    f"{CONNECTIONS:,} connections, the forward that carries them removed",
    carrying_entry_removed,
    listed=guest_address(0),
)
COUNTED: Final = Disturbance(f"{CONNECTIONS:,} connections counted for the first `status`", counted)
DISTURBANCES: Final = (
    UNDISTURBED,
    TRACKED,
    TRACKED6,
    CARRYING,
    COUNTED,
    Disturbance("a journal that reads nothing", undisturbed, start=start_with_stuck_journal),
    Disturbance("iptables' lock held", lock_held, lambda scene: scene.host.run(*_LEGACY_RULE), nftables_only=True),
    Disturbance("a guest's flood", flooded, define_flooder),
    OURS_ALONE,
    Disturbance(
        f"the same, and a foreign set of {ELEMENTS:,} elements changes",
        foreign_set_changes,
        load_foreign_table,
        ours_only=True,
        nftables_only=True,
    ),
)
