"""Log lines on a terminal, and elsewhere."""

import logging
import sys

import pytest

from fwdaemon.journal import StreamFormatter


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
