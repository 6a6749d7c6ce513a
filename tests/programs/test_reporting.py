"""What a run of the tests says of a failure at once, and of the time and of lines that nothing reached at its end."""

import runpy
from collections.abc import Collection
from pathlib import Path

import pytest
from coverage import Coverage

from tests.covering import lines_short
from tests.reporting import time_lines

pytest_plugins = ["pytester"]

_TESTS = """
import os, pytest

@pytest.fixture
def sticky():
    yield
    raise OSError("stuck")

def test_good(): pass
def test_bad(): assert 1 == 2, "bad"
def test_teardown(sticky): pass
def test_fatal(): os._exit(3)
def test_after(): pass
"""


def test_a_failure_is_told_at_once_and_what_ends_a_worker_is_not_tried_again(
    pytester: pytest.Pytester, pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(pytestconfig.rootpath))
    pytester.makeconftest(
        "from tests.reporting import FailuresAtOnce\n"
        "def pytest_configure(config): config.pluginmanager.register(FailuresAtOnce(config))\n"
    )
    pytester.makepyfile(_TESTS)
    result = pytester.runpytest_subprocess(
        "--numprocesses=1", "--dist=loadfile", "--no-summary", "--max-worker-restart=3"
    )
    result.stdout.re_match_lines(
        [
            r".*FAILED .*test_bad: .*:\d+: AssertionError: bad",
            r".*FAILED .*test_teardown \(teardown\): .*OSError: stuck",
        ]
    )
    killed = [line for line in result.outlines if "FAILED" in line and "test_fatal" in line]
    assert len(killed) == 1
    assert result.parseoutcomes()["passed"] == 3


def test_the_time_is_told_by_directories_and_files_and_whether_it_was_within_the_budget() -> None:
    spent = {"tests/unit/test_a.py": 1.0, "tests/unit/test_b.py": 3.0, "tests/host/test_c.py": 2.5}
    assert time_lines(spent, 4.0, 4.0) == [
        "     4.0 s  tests/unit",
        "     2.5 s  tests/host",
        "     3.0 s  tests/unit/test_b.py",
        "     2.5 s  tests/host/test_c.py",
        "     1.0 s  tests/unit/test_a.py",
        "     4.0 s  by the clock, within the 4 s that this may take",
    ]
    assert "MORE THAN the 4 s" in time_lines(spent, 4.1, 4.0)[-1]


def test_the_budget_is_that_of_everything_or_of_all_unit_tests(
    pytester: pytest.Pytester, pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(pytestconfig.rootpath))
    pytester.makeconftest(
        "from tests.reporting import TimeSpent\n"
        "def pytest_configure(config): config.pluginmanager.register(TimeSpent(config))\n"
    )
    pytester.makepyprojecttoml('[tool.pytest.ini_options]\ntestpaths = ["there"]\n')
    for directory in ("there", "tests/unit"):
        (pytester.path / directory).mkdir(parents=True)
        (pytester.path / directory / f"test_{directory[-4:]}.py").write_text("def test_good(): pass\n")
    told = {words: pytester.runpytest_subprocess(*words).stdout.str() for words in ((), ("tests/unit",), ("there",))}
    assert "within the 1200 s" in told[()]
    assert "within the 30 s" in told["tests/unit",]
    assert "by the clock" not in told["there",]
    assert "by the clock" not in pytester.runpytest_subprocess("-k", "good").stdout.str()


@pytest.mark.parametrize(("called", "short"), [(("one",), True), (("one", "other"), False)])
def test_a_part_is_named_of_which_too_few_lines_are_reached(
    tmp_path: Path, called: Collection[str], *, short: bool
) -> None:
    (module := tmp_path / "fwdaemon/reconcile.py").parent.mkdir()
    module.write_text("def one():\n    return 1\n\n\ndef other():\n    return 2\n")
    (place := tmp_path / "place").mkdir()
    for name in called:  # as two workers do
        coverage = Coverage(str(place / "lines"), data_suffix=True, config_file=False, include=[str(module)])
        coverage.start()
        runpy.run_path(str(module))[name]()
        coverage.stop()
        coverage.save()
    told = [
        "FAILED fwdaemon/reconcile.py: tests without root reach 75.0 % of 4 lines",
        f"  {module}: not 6",
    ]
    assert list(lines_short(place, tmp_path)) == (told if short else [])
