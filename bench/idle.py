"""Figure: nothing happens."""

import time

from bench.figure import Figure, Series, Unit, Want
from bench.forwards import config
from bench.processes import fine_cpu_seconds, memory, tree
from bench.setting import Setting

_SIZE, _QUICK_SIZE = 10000, 100
_RESYNC_S, _QUICK_RESYNC_S = 30, 5
_RESYNCS, _WINDOWS = 1, 8
_QUICK_RESYNCS, _QUICK_WINDOWS = 2, 2
_MIB = 1024**2
_CORE_PERCENT, _MEMORY_MIB = 0.1, 80
_HOUR_S = 3600
_NOTES = """\
The daemon and its helpers keep N forwards on a host where nothing changes; they compare everything with the kernel
every {resync} s. Each sample is what proc(5) tells for {resyncs} of these in a row, programs that were started
included; memory is that at its end."""


def measure(setting: Setting) -> Figure:
    """Measure on one host, some windows one after the other."""
    size, resync = (_QUICK_SIZE, _QUICK_RESYNC_S) if setting.quick else (_SIZE, _RESYNC_S)
    resyncs, windows = (_QUICK_RESYNCS, _QUICK_WINDOWS) if setting.quick else (_RESYNCS, _WINDOWS)
    with setting.scene() as scene:
        pid = scene.daemon(config(size, resync=f"{resync}s")).pid
        shares = [_share_of_a_core(pid, resync * resyncs) for _ in range(windows)]
        told = memory(pid)
    busy = Series("CPU", Unit.PERCENT_OF_A_CORE, {size: [100 * share for share in shares]})
    hour = Series("CPU in an hour", Unit.SECONDS, {size: [_HOUR_S * share for share in shares]})
    rss, pss = Series("RSS", Unit.BYTES, {size: [told.rss]}), Series("PSS", Unit.BYTES, {size: [told.pss]})
    notes = _NOTES.format(resync=resync, resyncs=resyncs)
    wants = (
        Want(f"at {size:,}, less than {_CORE_PERCENT} % of a core", busy.samples[size], _CORE_PERCENT, " %"),
        Want(f"at {size:,}, less than {_MEMORY_MIB} MiB resident", [told.rss / _MIB], _MEMORY_MIB, " MiB"),
    )
    return Figure("idle", "Nothing happens", str(setting.flavour), notes, (busy, hour, rss, pss), wants)


def _share_of_a_core(pid: int, seconds: float) -> float:
    before, begun = sum(map(fine_cpu_seconds, tree(pid))), time.monotonic()
    time.sleep(seconds)
    return (sum(map(fine_cpu_seconds, tree(pid))) - before) / (time.monotonic() - begun)
