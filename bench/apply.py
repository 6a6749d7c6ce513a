"""Figure: everything from nothing."""

import json
from collections.abc import Mapping, Sequence
from typing import Final

from bench.figure import Figure, Series, Unit, Want, interleaved_ratio
from bench.setting import Setting, inside

_RUNS: Final = {10: 15, 100: 11, 1000: 9, 10000: 5}
_QUICK_RUNS: Final = {10: 3, 100: 3}
# Ten thousand would take hours on the legacy tables, where each program rewrites the whole table.
_HOOK_RUNS: Final = {10: 5, 100: 3, 1000: 3}
_FROM = 1000
_NOTES = """\
The first reconcile on a host without rules of ours, helpers running already: from the inventory to the rules, their
commit, the look for clashes and an audit line for each forward. In turn, the very same rules as text are handed to the
kernel's own program, which is the limit; and hook scripts' four rules for each forward are made by one `iptables` each.
The audit goes to a pipe, not to a journal. Of ours, a part is what programs take that change rules. CPU is that of all
processors together, programs included; other work on the machine moves it least."""


def measure(setting: Setting) -> Figure:
    """Measure on one host."""
    runs = setting.runs(_RUNS, _QUICK_RUNS)
    with setting.scene() as scene:
        told = {
            size: json.loads(
                inside(scene.host, "reconciling", "apply", str(size), str(count), str(_hook_runs(setting, size)))
            )
            for size, count in runs.items()
        }
    program = "iptables-legacy-restore" if setting.legacy else "nft -f"
    series = [
        _series(told, "ours", "kvm-portfwd"),
        *([] if setting.legacy else [_series(told, "programs", "of which programs")]),
        _series(told, "native", f"`{program}` alone"),
        _series(told, "hooks", "hook scripts"),
        # The helpers that write to the legacy tables are nobody's children that ended.
        *([] if setting.legacy else [_series(told, "cpu", "CPU, kvm-portfwd")]),
        *([] if setting.legacy else [_series(told, "native cpu", f"CPU, `{program}` alone")]),
    ]
    wants = (*_at_most_the_limit(told, program, setting), *_faster_than_hooks(told, setting))
    title = "N forwards from nothing"
    return Figure("apply", title, str(setting.flavour), _NOTES, tuple(series), wants)


def _hook_runs(setting: Setting, size: int) -> int:
    runs = _HOOK_RUNS.get(size, 0)
    return min(runs, 1) if setting.quick else runs


def _series(told: Mapping[int, Mapping[str, Sequence[float]]], key: str, label: str) -> Series:
    return Series(label, Unit.SECONDS, {size: seconds[key] for size, seconds in told.items() if seconds[key]})


def _at_most_the_limit(
    told: Mapping[int, Mapping[str, Sequence[float]]], program: str, setting: Setting
) -> tuple[Want, ...]:
    if setting.legacy:
        return ()
    return tuple(
        Want(
            f"at {size:,}, at most 1.3 times `{program}`",
            interleaved_ratio(each["ours"], each["native"]),
            1.3,
            " times",
        )
        for size, each in told.items()
        if size >= _FROM
    )


def _faster_than_hooks(told: Mapping[int, Mapping[str, Sequence[float]]], setting: Setting) -> tuple[Want, ...]:
    if _FROM not in told:
        return ()
    series, hooks = _series(told, "ours", ""), _series(told, "hooks", "")
    times = 15.0 if setting.legacy else 100.0
    faster = hooks.median(_FROM) / series.median(_FROM)
    return (
        Want(
            f"at {_FROM:,}, at least {times:g} times faster than hook scripts", faster, times, " times", at_least=True
        ),
    )
