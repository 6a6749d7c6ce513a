"""Every reviewed input through its target: what fuzzing once found stays mended, and the targets stay in order.

`scripts/fuzz` looks for more; this needs no fuzzer.
"""

import faulthandler
from pathlib import Path

import pytest

from tests.fuzz.targets import CORPUS, TARGETS, corpus

# Far beyond what any input takes, so that only one without end is ended.
_HANG_S = 120
_MOST_BYTES = 300_000


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
