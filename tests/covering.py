"""Measures what tests without root reach of the centre: at least 90 % of its lines, or the run fails.

That is so in a run of everything as root, and with `--cover`, as `scripts/cover` has it. Only the tests that are for
this are followed, as that makes each of them slower.
"""

import ast
import os
import tempfile
from collections.abc import Generator, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.reporting import is_whole

if TYPE_CHECKING:  # each worker of a run of other tests would load it
    from coverage import Coverage

ROOT: Final = Path(__file__).parents[1]
LEAST: Final = 90
PARTS: Final = (
    *("fwdaemon/reconcile.py", "fwdaemon/daemon.py", "fwdaemon/netfilter.py", "fwdaemon/connections.py"),
    "fwdaemon/hostnet/*.py",
)
_UNIT: Final = (
    *("backend_behaviour", "daemon", "daemon_configuration", "daemon_end", "departures", "forwarding", "inventories"),
    *("led_to", "localproxy", "neighbour_proxy", "netfilter", "owned_state", "proxying", "reconcile"),
    "reconcile_connections",
)
# They need root, which they have in a user namespace as well.
_KERNEL: Final = (
    *("gateways", "host_network", "loopback", "neighbour_proxy", "public_addresses", "routes", "sysctl_overrides"),
)
FILES: Final = (
    *(f"tests/unit/test_{name}.py" for name in _UNIT),
    *(f"tests/kernel/test_{name}.py" for name in _KERNEL),
)


class Covering:
    """A plugin of pytest's; the workers of pytest-xdist each have one, and the first process puts theirs together."""

    def __init__(self, config: pytest.Config) -> None:
        worker: dict[str, str | None] | None = getattr(config, "workerinput", None)
        is_asked = worker is None and (config.getoption("cover") or (is_whole(config) and os.geteuid() == 0))
        self._own = tempfile.TemporaryDirectory(prefix="portfwd-cover-") if is_asked else None
        own = self._own.name if self._own is not None else None
        self._where = worker["covering"] if worker is not None else own
        self._lines: list[str] = []

    @cached_property
    def _coverage(self) -> "Coverage":
        from coverage import Coverage  # noqa: PLC0415  as above

        include = [str(ROOT / part) for part in PARTS]
        return Coverage(f"{self._where}/lines", data_suffix=True, config_file=False, include=include)

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Tell a worker where to leave what it finds."""
        node.workerinput["covering"] = self._where

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Follow a test that is for this."""
        if self._where is None or item.location[0] not in FILES:
            return (yield)
        self._coverage.start()
        try:
            return (yield)
        finally:
            self._coverage.stop()

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Leave what was found, or put all of it together; nothing is said of a run that was cut off."""
        if "_coverage" in vars(self):
            self._coverage.save()
        if self._own is None:
            return
        if session.exitstatus in {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED}:
            self._lines = [*lines_short(Path(self._own.name))]
            if self._lines:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED
        self._own.cleanup()

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say where too little is reached."""
        for line in self._lines:
            terminalreporter.write_line(line, red=True)


def lines_short(place: Path, root: Path = ROOT) -> Iterator[str]:
    """Name the parts of which too few lines are reached, with the lines that are not, by what was left in a place."""
    from coverage import Coverage  # noqa: PLC0415  as above

    coverage = Coverage(str(place / "lines"), config_file=False, messages=False)
    coverage.combine([str(place)])
    for part in PARTS:
        found = {file: _reached(coverage, file) for file in sorted(root.glob(part))}
        every, missed = (sum(len(lines[which]) for lines in found.values()) for which in (0, 1))
        if every and 100 * (every - missed) < LEAST * every:
            yield f"FAILED {part}: tests without root reach {100 - 100 * missed / every:.1f} % of {every} lines"
            yield from (f"  {file}: not {_listed(lines[1])}" for file, lines in found.items() if lines[1])


def _reached(coverage: "Coverage", file: Path) -> tuple[set[int], set[int]]:
    """Give the statements, and those that are not reached; whatever imports a module runs those outside functions."""
    _, statements, _, missing, _ = coverage.analysis2(str(file))
    return set(statements), set(_inside(ast.parse(file.read_text(encoding="utf-8")))).intersection(missing)


def _inside(tree: ast.AST) -> Iterator[int]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from range(node.body[0].lineno, (node.end_lineno or node.body[0].lineno) + 1)


def _listed(lines: set[int]) -> str:
    return ", ".join(map(str, sorted(lines)))


if __name__ == "__main__":
    print(*FILES)  # noqa: T201  for scripts/cover
