"""The fuzzer around the targets: what counts as sound, and what is left behind."""

import logging
import tempfile
from pathlib import Path

import pytest

from tests.fuzz import clients
from tests.fuzz.__main__ import read_options
from tests.fuzz.figures import Fuzzed, record


@pytest.mark.parametrize(("status", "inputs", "broken"), [(0, 1, []), (77, 1, ["names"]), (0, 0, ["names"])])
def test_a_target_that_was_given_no_input_is_not_sound(status: int, inputs: int, broken: list[str]) -> None:
    assert record([Fuzzed.of("names", 1, status, inputs)])["broken"] == broken


def test_a_page_is_written_for_all_targets_or_none() -> None:
    assert read_options(["--page", "page.md"]).page == Path("page.md")
    with pytest.raises(SystemExit, match="2"):
        read_options(["--page", "page.md", "names"])


def test_the_servers_of_clients_leave_everything_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    clients.close()
    # The path of a socket may have 107 characters, and that of pytest's own directories often has more.
    with tempfile.TemporaryDirectory() as directory:
        monkeypatch.setattr(tempfile, "tempdir", directory)
        before = _constants()
        clients.control_client(b"\0{}\0")
        assert list(Path(directory).iterdir())
        assert _constants() != before
        clients.close()
        assert not list(Path(directory).iterdir())
        assert _constants() == before


def _constants() -> list[object]:
    pauses = [vars(module)[name] for module, name in clients.PAUSES]
    return [*pauses, logging.getLogger("asyncio").level]
