"""What a peer is: one way to publish ports of a host."""

from collections.abc import Sequence
from typing import ClassVar

from bench.forwards import GREETING, PUBLIC, guest_address, last_port
from bench.hook_scripts import HookForward
from bench.peers.steps import Step, written
from bench.processes import wait_quiet
from bench.scene import Scene

_PATIENCE_S = 1800.0


class Peer:
    """One way to publish ports, on the host of `scene`; the last of them leads to a server that greets.

    Methods that give steps may prepare something first, which is not timed and changes nothing that is published. By
    default a peer loads no configuration and leaves no process behind.
    """

    label: ClassVar[str]
    about: ClassVar[str]
    slow: ClassVar[bool] = False
    """It takes minutes, so it is measured less often."""
    limit: ClassVar[bool] = False
    """It does the least there is to do, so nothing can be faster."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene

    def publish(self, size: int) -> Sequence[Step]:
        """Publish so many ports where there are none."""
        raise NotImplementedError

    def add(self, size: int) -> Sequence[Step]:
        """Publish one more."""
        raise NotImplementedError

    def remove(self, size: int) -> Sequence[Step]:
        """Withdraw that one."""
        raise NotImplementedError

    def reload(self, size: int) -> Sequence[Step]:  # noqa: ARG002  for those that have a configuration
        """Publish one more by loading a configuration again; no steps where there is none."""
        return []

    def withdraw(self, size: int) -> None:
        """Withdraw everything."""
        raise NotImplementedError

    def pids(self) -> Sequence[int]:
        """Give the processes that stay, each for all below it."""
        return []

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
