"""Figure: side by side with the peers."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Final

from bench.figure import Figure
from bench.forwards import PUBLIC, last_port
from bench.peers.acting import FailedError
from bench.peers.by_hand import Hooks, Nft
from bench.peers.compared import ADD, APPLY, HEAL, MEMORY, P99, RATE, RELOAD, REMOVE, Measure, Parts, Told
from bench.peers.docker import Docker
from bench.peers.firewalld import Firewalld
from bench.peers.netavark import Netavark
from bench.peers.ours import Ours
from bench.peers.peer import Peer, one_more, seconds, settle
from bench.processes import memory
from bench.scene import Scene
from bench.setting import Setting, inside
from bench.wiped import EVERYTHING, PATIENCE_S, restore
from tests.lab.command import LabError
from tests.lab.place import wait_until
from tests.lab.release import own_release

_PEERS: Final[Mapping[str, Callable[[Scene], Peer]]] = {
    Nft.label: Nft,
    Firewalld.label: Firewalld,
    Netavark.label: Netavark,
    Docker.label: Docker,
    Hooks.label: Hooks,
}
_ROUNDS: Final = {10: 9, 100: 7, 1000: 5}
_QUICK_ROUNDS: Final = {10: 2}
# Of the slow ones with that many ports or more.
_MANY, _SLOW_ROUNDS = 1000, 3
_CONNECTIONS: Final = 3000
# So often for the parts of our times.
_PARTS: Final = "3"
_HEALED: Final = "It heals, as shown."
# How long to wait before saying that nobody repairs a wipe.
_WATCHED_S: Final = 10.0
_NOTES = """\
N ports of the host lead to guests behind it. Each peer has a host of its own with the same guests, and the peers take
turns. Daemons are asked over their sockets and programs are run directly, so no command-line front end is in the times.
Requests and files are prepared before the clock starts; the hosts' files are in memory. A client outside checks that
each change is in force. Through the last of the N ports, two clients outside open {count:,} connections, each one after
another. Memory is the proportional set size (PSS) of the processes that stay, and zero if there are none. A wipe is
`{wipe}`; a client outside tries again half a millisecond after each answer. The first turn, with the fewest ports, does
not count. Ratios compare samples of the same turn: a peer's seconds and bytes divided by ours, and our connections
divided by the peer's.

{abouts}"""


def measure(setting: Setting) -> Figure:
    """Measure with a host for each peer.

    Raises:
        LabError: the peers are not to be had for that release.

    """
    if setting.flavour.release is not own_release():
        raise LabError("the peers come from this machine's own release, and run on hosts of it alone")
    rounds = setting.runs(_ROUNDS, _QUICK_ROUNDS)
    with ExitStack() as at_end:
        peers, absent = [at_end.enter_context(_ready(setting, Ours, min(rounds)))], []
        for label, peer in _PEERS.items():
            try:
                peers.append(at_end.enter_context(_ready(setting, peer, min(rounds))))
            except (LabError, FailedError) as error:
                absent.append(f"- {label} does not run here: {str(error).strip().splitlines()[-1]}")
        told = Told(peers[0].label, frozenset(peer.label for peer in peers if peer.limit))
        _take_turns(peers, rounds, told)
        fates = [_HEALED, *(_fate(peer, min(rounds)) for peer in peers[1:])]
        parts = _parts(peers[0], rounds)
    abouts = [f"- {peer.label}: {peer.about}. {fate}" for peer, fate in zip(peers, fates, strict=True)]
    notes = _NOTES.format(
        count=_CONNECTIONS,
        wipe=" ".join(EVERYTHING[False]),
        abouts="\n".join([*abouts, *absent]),
    )
    return Figure(
        "peers",
        "Side by side with the peers",
        str(setting.flavour),
        notes,
        tuple(told.series()),
        tuple(told.wants(parts)),
        "ports",
        tuple(peer.label for peer in peers),
        tuple(told.versus()),
    )


@contextmanager
def _ready(setting: Setting, peer: Callable[[Scene], Peer], size: int) -> Iterator[Peer]:
    """Boot a host for a peer, and let it do once what it will do again."""
    # Only a routed network takes connections that libvirt's own rules would refuse behind NAT.
    with setting.scene(mode="route") as scene:
        made = peer(scene)
        try:
            settle(made)
            _take(made, size, Told("", frozenset()))
            yield made
        finally:
            made.close()


def _take_turns(peers: list[Peer], rounds: Mapping[int, int], told: Told) -> None:
    for turn in range(max(rounds.values())):
        for size in [size for size, count in rounds.items() if turn < count]:
            for peer in peers:
                if not (peer.slow and size >= _MANY and turn >= _SLOW_ROUNDS):
                    _take(peer, size, told)


def _take(peer: Peer, size: int, told: Told) -> None:
    """Publish, use, change and withdraw so many ports."""

    def tell(measure: Measure, sample: float) -> None:
        told.add(measure, peer.label, size, sample)

    tell(APPLY, seconds(peer.scene, peer.publish(size)))
    settle(peer)
    connections = peer.scene.traffic.connections(PUBLIC, last_port(size), _CONNECTIONS)
    tell(RATE, connections.rate)
    tell(P99, connections.p99)
    tell(MEMORY, float(sum(memory(pid).pss for pid in peer.pids())))
    _change(peer, size, tell)
    if isinstance(peer, Ours):
        tell(HEAL, _healed(peer, size))
    peer.withdraw(size)
    settle(peer)


def _change(peer: Peer, size: int, tell: Callable[[Measure, float], None]) -> None:
    tell(ADD, seconds(peer.scene, peer.add(size)))
    _see(peer, size, answers=True)
    tell(REMOVE, seconds(peer.scene, peer.remove(size)))
    _see(peer, size, answers=False)
    if steps := peer.reload(size):
        tell(RELOAD, seconds(peer.scene, steps))
        _see(peer, size, answers=True)


def _see(peer: Peer, size: int, *, answers: bool) -> None:
    """See that the one more port answers, or does not, and that nothing is left to do."""
    wait_until(lambda: _connects(peer, one_more(size)) is answers, f"{peer.label}: the port answers: {answers}")
    settle(peer)


def _connects(peer: Peer, port: int) -> bool:
    try:
        peer.scene.host.outside.connect(PUBLIC, port).close()
    except OSError:
        return False
    return True


def _healed(peer: Ours, size: int) -> float:
    """Wipe everything; the seconds without an answer."""
    host = peer.scene.host
    with peer.scene.traffic.knocking(PUBLIC, last_port(size)) as knocking:
        knocking.wait("up", PATIENCE_S)
        before = knocking.changes
        host.run(*EVERYTHING[False])
        gap = knocking.outage(before, PATIENCE_S)
    restore(host, peer.libvirts)
    settle(peer)
    return gap


def _fate(peer: Peer, size: int) -> str:
    """Wipe everything of a peer that is measured no more, and say what came of it."""
    seconds(peer.scene, peer.publish(size))
    with peer.scene.traffic.knocking(PUBLIC, last_port(size)) as knocking:
        knocking.wait("up", PATIENCE_S)
        peer.scene.host.run(*EVERYTHING[False])
        time.sleep(_WATCHED_S)
        answers = knocking.answers
    if peer.scene.host.run("nft", "list", "ruleset").stdout.strip():
        return "Its rules are back after a wipe."
    lost = f"Its rules are not back {_WATCHED_S:.0f} s after a wipe"
    return f"{lost}; its proxy answers instead." if answers else f"{lost}, and nothing answers."


def _parts(peer: Peer, rounds: Mapping[int, int]) -> Parts:
    """Measure a reconcile alone, where the daemon ran."""
    host = peer.scene.host
    peer.close()
    host.portfwd("flush")
    return Parts(
        {size: json.loads(inside(host, "reconciling", "apply", str(size), _PARTS, "0")) for size in rounds},
        {size: json.loads(inside(host, "reconciling", "change", str(size), _PARTS)) for size in rounds},
    )
