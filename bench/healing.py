"""Figure: wiped, and healed."""

from contextlib import ExitStack
from typing import Final

from bench.figure import Figure, Series, Unit, Want
from bench.setting import Setting, take_turns
from bench.wiped import EVERYTHING, Wiped, wipe_text

_RUNS: Final = {10: 9, 100: 9, 1000: 9, 10000: 5}
_QUICK_RUNS: Final = {10: 3, 100: 3}
_MEASURED_AT = 1000
_NOTES = """\
`{wipe}` on a host with N forwards. The time is what a client outside sees, from its last connection that was answered
to the first that is answered again; it tries again half a millisecond after each. Each number of forwards has a host
of its own, and the hosts take turns. libvirt's own rules are put back between the runs."""


def measure(setting: Setting) -> Figure:
    """Measure on one host for each number of forwards."""
    runs = setting.runs(_RUNS, _QUICK_RUNS)
    wipe = EVERYTHING[setting.legacy]
    with ExitStack() as at_end:
        hosts = {size: Wiped(at_end.enter_context(setting.scene()), size) for size in runs}
        gaps = take_turns(runs, lambda size: hosts[size].heal_once(wipe))
    series = Series("wiped to healed", Unit.SECONDS, gaps)
    notes = _NOTES.format(wipe=wipe_text(wipe))
    return Figure("healing", "Wiped to healed", str(setting.flavour), notes, (series,), _wants(series, setting))


def _wants(gaps: Series, setting: Setting) -> tuple[Want, ...]:
    if _MEASURED_AT not in gaps.samples:
        return ()
    limit = 1300.0 if setting.legacy else 100.0
    milliseconds = [1000 * seconds for seconds in gaps.samples[_MEASURED_AT]]
    return (Want(f"at {_MEASURED_AT:,}, less than {limit:g} ms", milliseconds, limit, " ms"),)
