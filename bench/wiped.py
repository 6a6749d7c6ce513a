"""One host whose rules are wiped: how long a client has no answer, and how long `nft` alone takes to put rules back."""

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Final

from bench.figure import Spread
from bench.forwards import PUBLIC, config, last_port
from bench.processes import Memory, memory, wait_quiet
from bench.scene import Scene
from tests.lab.daemon import Daemon
from tests.lab.host import Host
from tests.lab.release import LibvirtFirewall

# What is wanted holds where commits of others are not slow, too.
BUSY: Final = " wherever the kernel itself is not busy"
PATIENCE_S: Final = 120.0
# How often `nft` alone puts our table back.
_BY_HAND: Final = 5
# Every rule, or ours alone.
EVERYTHING: Final = {True: ("iptables-legacy", "-w", "-t", "nat", "-F"), False: ("nft", "flush", "ruleset")}
OURS: Final = ("nft", "delete", "table", "ip", "kvm_portfwd")
# libvirt itself does not notice; what it had is saved before, and restored, rather than libvirtd restarted.
_SAVE = {
    LibvirtFirewall.NFTABLES: ("nft", "list", "table", "ip", "libvirt_network"),
    LibvirtFirewall.IPTABLES: ("iptables-save",),
    LibvirtFirewall.LEGACY: ("iptables-save", "-t", "nat"),
}
_RESTORE = {
    LibvirtFirewall.NFTABLES: ("nft", "-f", "-"),
    LibvirtFirewall.IPTABLES: ("iptables-restore", "--noflush"),
    LibvirtFirewall.LEGACY: ("iptables-restore", "--noflush"),
}
_LIST_OURS = ("nft", "list", "table", "ip", "kvm_portfwd")


def wipe_text(wipe: tuple[str, ...]) -> str:
    """Write a wipe as one would type it."""
    return " ".join(word for word in wipe if word != "-w")


def because(healed: Sequence[float], alone: Sequence[float]) -> str:
    """Say how much of the milliseconds until something was healed is the kernel's own; empty where that is unknown."""
    if not alone:
        return ""
    kernel = Spread.of(alone).median
    rest = Spread.of(healed).median - kernel
    told = f"Of that, {kernel:.0f} ms are the kernel's own: so long takes `nft -f` alone beside the same"
    told += f" ({min(alone):.0f} to {max(alone):.0f})."
    return f"{told} The other {rest:.0f} ms are not." if rest > 0 else told


def saved(host: Host) -> str:
    """Save libvirt's rules for `restore`; call it before ours exist."""
    return host.run(*_SAVE[host.flavour.firewall]).stdout


def restore(host: Host, theirs: str) -> None:
    """Put libvirt's rules back."""
    host.run(*_RESTORE[host.flavour.firewall], stdin=theirs)


class Wiped:
    """The host of a scene and its daemon; `start` starts that on a configuration."""

    def __init__(self, scene: Scene, size: int, start: Callable[[Scene, str], Daemon] = Scene.daemon) -> None:
        self.scene = scene
        self.config = config(size, resync="1h")
        self._port = last_port(size)
        self._theirs = saved(scene.host)
        self.daemon = start(scene, self.config)

    def heal_once(self, wipe: tuple[str, ...], meanwhile: AbstractContextManager[None] | None = None) -> float:
        """Wipe, and give the seconds without an answer."""
        with self._wiping(wipe), self.scene.traffic.knocking(PUBLIC, self._port) as knocking:
            knocking.wait("up", PATIENCE_S)
            with meanwhile or nullcontext():
                before = knocking.changes
                self.scene.host.run(*wipe)
                return knocking.outage(before, PATIENCE_S)

    def by_hand(
        self,
        wipe: tuple[str, ...],
        meanwhile: AbstractContextManager[None] | None = None,
        listed: str = "",
        times: int = _BY_HAND,
    ) -> list[float]:
        """Give the seconds that `nft` takes to put our table back after a wipe while the daemon is stopped, each time.

        What this guest answers is `listed` at the same time, as by a daemon whose forwards to it went.
        """
        host, ours = self.scene.host, self.scene.host.run(*_LIST_OURS).stdout
        argv = (host.python, "-m", "bench.putting_back", str(times), listed, *wipe)
        with self._wiping(wipe), meanwhile or nullcontext(), self._stopped():
            return [*map(float, host.run(*argv, stdin=ours, timeout=PATIENCE_S).stdout.split())]

    def memory(self) -> Memory:
        """What the daemon takes now, with all below it."""
        return memory(self.daemon.pid)

    @contextmanager
    def _stopped(self) -> Iterator[None]:
        self.daemon.process.send(signal.SIGSTOP)
        try:
            yield
        finally:
            self.daemon.process.send(signal.SIGCONT)

    @contextmanager
    def _wiping(self, wipe: tuple[str, ...]) -> Iterator[None]:
        """Put back what a wipe takes from libvirt, and wait until nothing is left to do."""
        yield
        if wipe != OURS:
            restore(self.scene.host, self._theirs)
        wait_quiet(self.daemon.pid)
