"""Figure: wiped, and healed."""

from contextlib import ExitStack
from typing import Final

from bench.figure import Figure, Series, Unit, Want
from bench.forwards import PUBLIC, config, last_port
from bench.processes import wait_quiet
from bench.scene import Scene
from bench.setting import Setting, take_turns
from tests.lab.release import LibvirtFirewall

_RUNS: Final = {10: 9, 100: 9, 1000: 9, 10000: 5}
_QUICK_RUNS: Final = {10: 3, 100: 3}
_PATIENCE_S = 120.0
_MEASURED_AT = 1000
_NOTES = """\
`{wipe}` on a host with N forwards. The time is what a client outside sees, from its last connection that was answered
to the first that is answered again; it tries again half a millisecond after each. Each number of forwards has a host
of its own, and the hosts take turns. libvirt's own rules are put back between the runs."""
_WIPES = {True: ("iptables-legacy", "-w", "-t", "nat", "-F"), False: ("nft", "flush", "ruleset")}
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


def measure(setting: Setting) -> Figure:
    """Measure on one host for each number of forwards."""
    runs = setting.runs(_RUNS, _QUICK_RUNS)
    wipe = _WIPES[setting.legacy]
    with ExitStack() as at_end:
        healing = {size: Healing(at_end.enter_context(setting.scene()), size) for size in runs}
        gaps = take_turns(runs, lambda size: healing[size].heal_once(wipe))
    series = Series("wiped to healed", Unit.SECONDS, gaps)
    notes = _NOTES.format(wipe=" ".join(word for word in wipe if word != "-w"))
    return Figure("healing", "Wiped to healed", str(setting.flavour), notes, (series,), _wants(series, setting))


class Healing:
    """One host whose rules are wiped."""

    def __init__(self, scene: Scene, size: int) -> None:
        self._scene = scene
        self._port = last_port(size)
        self._firewall = scene.host.flavour.firewall
        self._theirs = scene.host.run(*_SAVE[self._firewall]).stdout
        self._daemon = scene.daemon(config(size, resync="1h"))

    def heal_once(self, wipe: tuple[str, ...]) -> float:
        """Wipe, and give the seconds without an answer."""
        with self._scene.traffic.knocking(PUBLIC, self._port) as knocking:
            knocking.wait("up", _PATIENCE_S)
            self._scene.host.run(*wipe)
            answered, _ = knocking.wait("down", _PATIENCE_S)
            _, again = knocking.wait("up", _PATIENCE_S, start=knocking.first("down"))
        self._scene.host.run(*_RESTORE[self._firewall], stdin=self._theirs)
        wait_quiet(self._daemon.pid)
        return again - answered


def _wants(gaps: Series, setting: Setting) -> tuple[Want, ...]:
    if _MEASURED_AT not in gaps.samples:
        return ()
    limit = 1300.0 if setting.legacy else 100.0
    milliseconds = [1000 * seconds for seconds in gaps.samples[_MEASURED_AT]]
    return (Want(f"at {_MEASURED_AT:,}, less than {limit:g} ms", milliseconds, limit, " ms"),)
