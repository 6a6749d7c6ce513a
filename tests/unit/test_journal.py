"""Log lines on a terminal, and elsewhere."""

import logging
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from socket import AF_UNIX, SOCK_DGRAM, recv_fds, socket
from typing import TextIO

import pytest

from fwdaemon.audit.journal import Arrears, JournalOutlet, QueueHandler, StreamFormatter, StreamOutlet
from fwdaemon.core.types import Job
from tests.lab.place import wait_until


def line(text: str, level: int = logging.INFO, action: str = "") -> logging.LogRecord:
    record = logging.LogRecord("fwdaemon.audit", level, "audit.py", 1, "%s", (text,), None)
    record.journal = {"PORTFWD_ACTION": action}
    return record


@pytest.mark.parametrize("colour", [True, False])
def test_an_audit_line_is_as_it_was_written(*, colour: bool) -> None:
    plain = line("libvirt at qemu:///system answers")
    assert StreamFormatter(colour=colour).format(plain) == "libvirt at qemu:///system answers"


def test_what_is_wrong_says_so_first() -> None:
    plain = StreamFormatter(colour=False)
    assert plain.format(line("no bridge", logging.WARNING, "problem")) == "warning: no bridge"
    assert plain.format(line("wrong", logging.ERROR, "refused")) == "error: wrong"


def test_on_a_terminal_the_first_word_has_the_colour_of_its_action() -> None:
    coloured = StreamFormatter(colour=True)
    assert coloured.format(line("added web1: tcp *:80", action="added")) == "\033[32madded\033[0m web1: tcp *:80"
    warning = coloured.format(line("no bridge", logging.WARNING, "problem"))
    assert warning == "\033[33mwarning:\033[0m no bridge"


def test_a_trace_comes_below_its_line() -> None:
    record = line("this is a mistake", logging.ERROR)
    try:
        _ = 1 / 0
    except ZeroDivisionError:
        record.exc_info = sys.exc_info()
    first, *trace = StreamFormatter(colour=False).format(record).splitlines()
    assert first == "error: this is a mistake"
    assert (trace[0], trace[-1]) == ("Traceback (most recent call last):", "ZeroDivisionError: division by zero")


@pytest.fixture
def pipe() -> Iterator[tuple[TextIO, TextIO]]:
    """Both ends of a pipe."""
    reading, writing = os.pipe()
    with os.fdopen(reading) as source, os.fdopen(writing, "w") as sink:
        yield source, sink


def fill(sink: TextIO) -> int:
    """Fill a pipe until it takes no more, and tell with how many bytes."""
    os.set_blocking(sink.fileno(), False)
    filled = 0
    try:
        while True:
            filled += os.write(sink.fileno(), b" " * 4096)
    except BlockingIOError:
        os.set_blocking(sink.fileno(), True)
        return filled


def test_who_logs_waits_for_no_reader_and_what_was_lost_is_counted(pipe: tuple[TextIO, TextIO]) -> None:
    source, sink = pipe
    filled, arrears = fill(sink), Arrears()
    handler = QueueHandler(StreamOutlet(sink), 3, arrears)
    handler.handle(line("line 0"))
    wait_until(lambda: [late.job for late in arrears.late(0.0)] == [Job.LOG], "the status shows that it waits")
    for number in range(1, 10):
        handler.handle(line(f"line {number}"))
    os.read(source.fileno(), filled)
    written = [source.readline().rstrip()]
    while "lost" not in written[-1]:
        written.append(source.readline().rstrip())
    *kept, last = written
    assert kept == [f"line {number}" for number in range(len(kept))]
    found = re.fullmatch(r"warning: (\d+) log lines were lost: they could not be written in time", last)
    assert found is not None
    assert int(found[1]) == arrears.lost_lines == 10 - len(kept) > 0
    handler.finish(10)
    assert arrears.late(0.0) == ()


def test_the_last_lines_are_waited_for(pipe: tuple[TextIO, TextIO]) -> None:
    source, sink = pipe
    handler = QueueHandler(StreamOutlet(sink))
    for number in range(100):
        handler.handle(line(f"line {number}"))
    handler.finish(10)
    sink.close()
    assert source.read().splitlines() == [f"line {number}" for number in range(100)]


def test_the_end_does_not_wait_for_a_pipe_that_is_not_read(pipe: tuple[TextIO, TextIO]) -> None:
    source, sink = pipe
    filled = fill(sink)
    handler = QueueHandler(StreamOutlet(sink), size=1)
    for _ in range(3):
        handler.handle(line("a line"))
    handler.finish(0.01)
    os.read(source.fileno(), filled)  # for the thread's sake
    assert source.readline() == "a line\n"


def test_a_line_that_the_journal_does_not_take_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    arrears = Arrears()
    handler = QueueHandler(JournalOutlet(str(path)), arrears=arrears)
    handler.handle(line("too early"))
    wait_until(lambda: handler.lost == 1, "the line is lost")
    with socket(AF_UNIX, SOCK_DGRAM) as journal:
        journal.bind(str(path))
        handler.handle(line("in time"))
        assert journal.recv(4096).startswith(b"MESSAGE=in time\n")
        assert journal.recv(4096).startswith(b"MESSAGE=1 log lines were lost")
        assert arrears.lost_lines == 1
    handler.finish(10)


def test_the_journal_is_told_fields_of_every_length(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    outlet, long = JournalOutlet(path), "x" * 1_000_000
    with socket(AF_UNIX, SOCK_DGRAM) as journal:
        journal.bind(path)
        outlet.write(outlet.encoded(line("two\nlines", logging.ERROR, "refused")))
        said = b"two\nlines"
        expected = b"MESSAGE\n" + len(said).to_bytes(8, "little") + said + b"\nPRIORITY=3\n"
        assert journal.recv(4096) == expected + b"SYSLOG_IDENTIFIER=kvm-portfwd\nPORTFWD_ACTION=refused\n"
        outlet.write(outlet.encoded(line(long)))
        data, (file,), _, _ = recv_fds(journal, 4096, 1)
        assert data == b""
        with os.fdopen(file, "rb") as content:
            content.seek(0)
            assert content.read().startswith(f"MESSAGE={long}\nPRIORITY=6\n".encode())
