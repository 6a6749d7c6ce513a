"""More than 1,024 open files, which select(2) cannot name: each client of the local proxy has two."""

import os
import resource
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from threading import Thread

import pytest

from fwdaemon.audit.journal import StreamOutlet
from fwdaemon.kernel.process import Companion

_MANY = 1100
_ECHO = "import sys\nfor line in sys.stdin:\n    print(line, end='', flush=True)\n"


@pytest.fixture(autouse=True)
def _many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2 * _MANY), hard))
    with ExitStack() as stack:
        for _ in range(_MANY):
            stack.enter_context(Path(os.devnull).open("rb"))
        yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_companion_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "echoing.py").write_text(_ECHO, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    companion = Companion("echoing", "4", {})
    assert companion.exchange("x" * 200_000) == "x" * 200_000 + "\n"
    companion.close()


def test_lines_wait_for_a_reader_who_is_late() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    line, read = b"x" * 200_000, bytearray()
    with os.fdopen(reading, "rb") as source:
        reader = Thread(target=lambda: read.extend(source.read(len(line))))
        with os.fdopen(writing, "w") as sink:
            writer = Thread(target=StreamOutlet(sink).write, args=(line,))
            writer.start()
            reader.start()
            writer.join()
        reader.join()
    assert bytes(read) == line
