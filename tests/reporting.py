"""Says what failed as it fails, so that a run which is cut off has said it too; and passes over what ended a worker.

At the end it says where the time went, and whether a whole run kept to its budget. A machine may be slow, so that is
no failure; `scripts/test` ends a run after 42 minutes.
"""

import time
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Final

import pytest

BUDGETS_S: Final = {(): 20 * 60.0, ("tests/unit",): 30.0}
"""How long the run of these may take on two processors that nothing else uses; nothing named is everything."""
_DEAREST: Final = 12

DAEMONS = "the daemons' last lines"
"""The section of a report that has them."""


class FailuresAtOnce:
    """A plugin of pytest's: writes one line for each failure at the moment it is known."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._told: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Write a line; the reports of pytest-xdist's workers come in here as well."""
        terminal = self._config.pluginmanager.get_plugin("terminalreporter")
        if report.failed and terminal is not None:
            terminal.ensure_newline()
            terminal.write_line(failure_line(report), red=True)
            said = [text for name, text in report.sections if name == DAEMONS]
            self._told += [failure_line(report), *said] if said else []

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Write what the daemons of failed tests said near the end: of a long log often only that is kept."""
        for text in self._told:
            terminalreporter.write_line(text)

    @pytest.hookimpl(optionalhook=True)
    def pytest_handlecrashitem(self, crashitem: str, sched: Any) -> None:
        """Count a test that ended its worker as done: pytest-xdist would give it to the next worker, and so on."""
        for tests in getattr(sched, "workqueue", {}).values():
            if crashitem in tests:
                tests[crashitem] = True


class TimeSpent:
    """A plugin of pytest's: adds up by files what tests took, set-up included, and reports it with the budget."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._began = time.monotonic()
        self._spent: defaultdict[str, float] = defaultdict(float)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add a test's set-up, call or tear-down."""
        self._spent[report.nodeid.partition("::")[0]] += report.duration

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Write a table, where everything in question was run."""
        budget = budget_of(self._config)
        if budget is None:
            return
        terminalreporter.section("where the time went")
        for line in time_lines(self._spent, time.monotonic() - self._began, budget):
            terminalreporter.write_line(line)


def budget_of(config: pytest.Config) -> float | None:
    """How many seconds what is run may take; `None` for a part that has no budget."""
    named = _named(config)
    return None if named is None else BUDGETS_S.get(named)


def is_whole(config: pytest.Config) -> bool:
    """Whether everything is run."""
    return _named(config) == ()


def _named(config: pytest.Config) -> tuple[str, ...] | None:
    """Give the parts that are run, none for everything; `None` where only some tests of them are."""
    option = config.option
    if option.keyword or option.markexpr or option.collectonly:
        return None
    named = () if config.args_source is pytest.Config.ArgsSource.TESTPATHS else tuple(config.args)
    return tuple(word.rstrip("/") for word in named)


def time_lines(spent: Mapping[str, float], whole: float, budget: float) -> list[str]:
    """Say what directories and the dearest files took, in seconds of all workers, and the whole run of the clock."""
    rooms: defaultdict[str, float] = defaultdict(float)
    for file, seconds in spent.items():
        rooms[file.rpartition("/")[0]] += seconds
    kept = "within" if whole <= budget else "MORE THAN"
    return [
        *(f"{seconds:8.1f} s  {name}" for name, seconds in [*_dearest(rooms), *_dearest(spent)]),
        f"{whole:8.1f} s  by the clock, {kept} the {budget:.0f} s that this may take",
    ]


def _dearest(spent: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(spent.items(), key=lambda item: -item[1])[:_DEAREST]


def failure_line(report: pytest.TestReport) -> str:
    """Name the test, the place and the first line of what went wrong."""
    name = f"FAILED {report.nodeid}" + (f" ({report.when})" if report.when in ("setup", "teardown") else "")
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is None:  # a worker that ended, or a fixture that is not there
        return f"{name}: {report.longreprtext.strip().partition(chr(10))[0]}"
    return f"{name}: {crash.path}:{crash.lineno}: {crash.message.partition(chr(10))[0]}"
