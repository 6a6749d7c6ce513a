"""Every reviewed input through its target: what fuzzing once found stays mended, and the targets stay in order.

`scripts/fuzz` looks for more; this needs no fuzzer.
"""

import faulthandler
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzz import clients
from tests.fuzz.listings import gate_in
from tests.fuzz.targets import CORPUS, TARGETS, corpus

# Far beyond what any input takes, so that only one without end is ended.
_HANG_S = 120
_MOST_BYTES = 300_000


@pytest.fixture(scope="module", autouse=True)
def _servers() -> Iterator[None]:
    """Leave no server behind for the tests that follow."""
    yield
    clients.close()


@pytest.mark.parametrize("name", TARGETS)
def test_the_reviewed_inputs_of(name: str) -> None:
    inputs = corpus(name)
    assert inputs, f"{name} has no input to begin with"
    faulthandler.dump_traceback_later(_HANG_S, exit=True)
    try:
        for path in inputs:
            _run(name, path)
    finally:
        faulthandler.cancel_dump_traceback_later()


def _run(name: str, path: Path) -> None:
    try:
        TARGETS[name](path.read_bytes())
    except Exception as error:
        error.add_note(f"with {path}")
        raise


def test_every_reviewed_input_has_its_target() -> None:
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)


def test_the_corpus_is_small_enough_to_be_read() -> None:
    assert sum(path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()) < _MOST_BYTES


def test_a_gate_of_ours_would_be_seen_if_a_target_forged_one() -> None:
    assert gate_in().ours
