"""Figure: everything from nothing."""

import json
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Final

from bench.figure import Figure, Series, Unit, Want, ratios
from bench.setting import Setting, inside
from bench.table import number

_RUNS: Final = {10: 15, 100: 11, 1000: 9, 10000: 5}
_QUICK_RUNS: Final = {10: 3, 100: 3}
# Ten thousand would take hours on iptables-legacy, where each program rewrites the whole table.
_HOOK_RUNS: Final = {10: 5, 100: 5, 1000: 5}
_REPORT_RUNS: Final = 11
_FROM = 1000
_LEGACY_MS: Final = {1000: 150, 10000: 1500}
_REPORT_MS: Final = 5
_NOTES = """\
The first reconcile on a host without rules of ours, helpers running already: from the inventory to the rules, their
commit and an audit line for each forward. In turn, the very same rules as text are handed to the kernel's
own program, which is the limit of what it takes until the rules are in the kernel; and hook scripts' four rules for
each forward are made by one `iptables` each, not for 10,000, as each of these programs reads the whole table first.
The audit goes to a pipe, not to a journal; its lines are written once the rules are in the kernel, and are also
measured separately. "Of which programs" is the time spent in the programs that change rules. CPU time is summed over
all processors and includes those programs; it varies least with the load of the machine."""


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
        for size in told:
            told[size] |= json.loads(inside(scene.host, "reconciling", "report", str(size), str(_report_runs(setting))))
    program = "iptables-legacy-restore" if setting.legacy else "nft -f"
    labels = {
        "whole": "kvm-portfwd",
        "committed": "of which until the rules are in the kernel",
        "programs": "of which programs",
        "native": f"`{program}` alone",
        "hooks": "hook scripts",
        "cpu": "CPU, kvm-portfwd",
        "helpers": "CPU, its helper for each family",
        "native cpu": f"CPU, `{program}` alone",
        "report": "CPU, the audit lines alone",
    }
    # What writes to iptables-legacy are helpers that run on, and no programs; there are none on nftables.
    meaningless = {"programs"} if setting.legacy else {"helpers"}
    series = [_series(told, key, label) for key, label in labels.items() if key not in meaningless]
    wants = (
        *(_legacy_in_time(told) if setting.legacy else _at_most_the_limit(told, program)),
        *_faster_than_hooks(told, setting),
        *_reported_in_time(told),
    )
    title = "N forwards from nothing"
    return Figure("apply", title, str(setting.flavour), _NOTES, tuple(series), wants)


def _report_runs(setting: Setting) -> int:
    return 2 if setting.quick else setting.at_most(_REPORT_RUNS)


def _hook_runs(setting: Setting, size: int) -> int:
    runs = _HOOK_RUNS.get(size, 0)
    return min(runs, 1) if setting.quick else runs


def _series(told: Mapping[int, Mapping[str, Sequence[float]]], key: str, label: str) -> Series:
    return Series(label, Unit.SECONDS, {size: seconds[key] for size, seconds in told.items() if seconds[key]})


def _at_most_the_limit(told: Mapping[int, Mapping[str, Sequence[float]]], program: str) -> tuple[Want, ...]:
    return tuple(
        Want(
            f"at {size:,}, until the rules are in the kernel, at most 1.3 times `{program}`",
            ratios(each["committed"], each["native"]),
            1.3,
            " times",
            because=_beside_the_limit({key: median(samples) for key, samples in each.items() if samples}),
        )
        for size, each in told.items()
        if size >= _FROM
    )


def _legacy_in_time(told: Mapping[int, Mapping[str, Sequence[float]]]) -> tuple[Want, ...]:
    return tuple(
        Want(f"at {size:,}, at most {most} ms", [1000 * each for each in told[size]["whole"]], most, " ms")
        for size, most in _LEGACY_MS.items()
        if size in told
    )


def _reported_in_time(told: Mapping[int, Mapping[str, Sequence[float]]]) -> tuple[Want, ...]:
    if _FROM not in told:
        return ()
    spent = [1000 * seconds for seconds in told[_FROM]["report"]]
    return (Want(f"at {_FROM:,}, audit lines take at most {_REPORT_MS} ms of CPU", spent, _REPORT_MS, " ms"),)


def _beside_the_limit(seconds: Mapping[str, float]) -> str:
    before = seconds["committed"] - seconds["programs"]
    return (
        f"The limit, {_ms(seconds['native'])}, is a single program that loads a ruleset already written. In our"
        f" own time, programs take {_ms(seconds['programs'])}, and Python takes {_ms(before)} to find each forward's"
        f" guest, write the rules and inspect other programs' chains."
        f" Another {_ms(seconds['whole'] - seconds['committed'])} follow once the rules are in the kernel, most of"
        " it for an audit line for each forward."
    )


def _beside_hooks(seconds: Mapping[str, float]) -> str:
    return (
        f"Of {_ms(seconds['whole'])}, the helper that edits the tables through python-iptables takes"
        f" {_ms(seconds['helpers'])} of a processor."
        f" `iptables-legacy-restore` takes {_ms(seconds['native'])} for the same rules."
    )


def _ms(seconds: float) -> str:
    return f"{number(1000 * seconds)} ms"


def _faster_than_hooks(told: Mapping[int, Mapping[str, Sequence[float]]], setting: Setting) -> tuple[Want, ...]:
    if _FROM not in told:
        return ()
    seconds = {key: median(samples) for key, samples in told[_FROM].items() if samples}
    times = 15.0 if setting.legacy else 100.0
    return (
        Want(
            f"at {_FROM:,}, at least {times:g} times faster than hook scripts",
            ratios(told[_FROM]["hooks"], told[_FROM]["whole"][: len(told[_FROM]["hooks"])]),
            times,
            " times",
            at_least=True,
            because=_beside_hooks(seconds) if setting.legacy else _beside_the_limit(seconds),
        ),
    )
