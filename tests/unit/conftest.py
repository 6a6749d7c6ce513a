"""What tests of several files are given."""

import logging

import pytest

from tests.unit.reconcile_bench import Bench


@pytest.fixture
def bench(caplog: pytest.LogCaptureFixture) -> Bench:
    caplog.set_level(logging.INFO, "fwdaemon.audit")
    return Bench(caplog=caplog)
