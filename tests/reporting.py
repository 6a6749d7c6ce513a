"""Says what failed as it fails, so that a run which is cut off has said it too; and passes over what ended a worker."""

from typing import Any

import pytest

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


def failure_line(report: pytest.TestReport) -> str:
    """Name the test, the place and the first line of what went wrong."""
    name = f"FAILED {report.nodeid}" + (f" ({report.when})" if report.when in ("setup", "teardown") else "")
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is None:  # a worker that ended, or a fixture that is not there
        return f"{name}: {report.longreprtext.strip().partition(chr(10))[0]}"
    return f"{name}: {crash.path}:{crash.lineno}: {crash.message.partition(chr(10))[0]}"
