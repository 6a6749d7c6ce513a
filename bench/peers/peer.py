"""What a peer is: one way to publish ports of a host."""

from collections.abc import Sequence
from typing import Protocol

from bench.forwards import GREETING, PUBLIC, guest_address, last_port
from bench.hook_scripts import HookForward
from bench.peers.steps import Step, written
from bench.processes import wait_quiet
from bench.scene import Scene

_PATIENCE_S = 1800.0


class Peer(Protocol):
    """One way to publish ports, on the host of `scene`; the last of them leads to a server that greets.

    Methods that give steps may get something ready before, which is not timed, and change nothing that is published.
    """

    scene: Scene
    label: str
    about: str
    # Measured less often where it takes minutes.
    slow: bool
    # Behind it nothing can be: it does the least that there is to do.
    limit: bool

    def publish(self, size: int) -> Sequence[Step]:
        """Publish so many ports where there are none."""

    def add(self, size: int) -> Sequence[Step]:
        """Publish one more."""

    def remove(self, size: int) -> Sequence[Step]:
        """Publish that one no more."""

    def reload(self, size: int) -> Sequence[Step]:
        """Publish one more by loading a configuration again; nothing where that is not how it is done."""

    def withdraw(self, size: int) -> None:
        """Publish nothing any more."""

    def pids(self) -> Sequence[int]:
        """Give the processes that stay, each for all below it."""

    def close(self) -> None:
        """End them."""


def one_more(size: int) -> int:
    """Give the port that is added to so many."""
    return last_port(size) + 1


def added(size: int) -> HookForward:
    """Give the forward that is added, to a guest."""
    return HookForward(PUBLIC, one_more(size), guest_address(0), GREETING)


def seconds(scene: Scene, steps: Sequence[Step]) -> float:
    """Do the steps on the host, one after the other; the seconds that they took."""
    words = scene.host.python, "-m", "bench.peers.acting"
    return float(scene.host.run(*words, stdin=written(steps), timeout=_PATIENCE_S).stdout)


def settle(peer: Peer) -> None:
    """Wait until its processes have nothing to do."""
    for pid in peer.pids():
        wait_quiet(pid)
