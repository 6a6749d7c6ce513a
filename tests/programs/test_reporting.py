"""What a run of the tests says of a failure at once."""

import pytest

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
