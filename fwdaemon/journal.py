"""Where log lines go: to the journal with their fields, or to standard error for who runs the daemon by hand.

The only module that writes to the journal.
"""

import logging
import os
import sys
from typing import TextIO

import systemd.journal

_IDENTIFIER = "kvm-portfwd"
# By level: what syslog(3) calls it, and how a terminal shows it (ECMA-48, 8.3.117).
_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
_COLOURS = {logging.WARNING: "\033[33m", logging.ERROR: "\033[31m", logging.CRITICAL: "\033[31m"}
_ACTION_COLOURS = {"added": "\033[32m", "removed": "\033[35m", "restored": "\033[36m", "waiting": "\033[33m"}
_RESET = "\033[0m"


def set_up() -> None:
    """Send all log lines of this program where its standard error leads."""
    _leave_out_what_nobody_reads()
    root = logging.getLogger()
    root.addHandler(JournalHandler() if _leads_to_journal(sys.stderr) else _to_stream(sys.stderr))
    root.setLevel(logging.INFO)


def _leave_out_what_nobody_reads() -> None:
    """Spare each line the search for the place that wrote it, and the like: a configuration may make thousands.

    As "Optimization" in Python's logging HOWTO has it.
    """
    logging._srcfile = None  # noqa: SLF001  so says the HOWTO
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False


class JournalHandler(logging.Handler):
    """Writes records through the journal's own protocol, with the fields of `record.journal`."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        fields = {
            "MESSAGE": self.format(record),
            "PRIORITY": str(_PRIORITIES.get(record.levelno, 6)),
            "SYSLOG_IDENTIFIER": _IDENTIFIER,
            **getattr(record, "journal", {}),
        }
        try:
            # `send` would look at the stack for the place that called it.
            systemd.journal.sendv(*(_encodable(f"{name}={value}") for name, value in fields.items()))
        except Exception:  # noqa: BLE001  a line that is lost must not end what it tells of (logging's own rule)
            self.handleError(record)


class StreamFormatter(logging.Formatter):
    """Writes audit lines as they are; what is wrong says so first. With `colour`, their beginning is coloured."""

    def __init__(self, *, colour: bool) -> None:
        super().__init__()
        self._colour = colour

    def usesTime(self) -> bool:  # noqa: N802  so logging calls it
        """Say that lines have no time, which is looked for in each otherwise."""
        return False

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  the same
        """Write one record; what `logging` knows of an exception comes below it."""
        text = record.message
        line = text if record.levelno == logging.INFO else f"{record.levelname.lower()}: {text}"
        action = getattr(record, "journal", {}).get("PORTFWD_ACTION", "")
        colour = _COLOURS.get(record.levelno) or _ACTION_COLOURS.get(action)
        if not self._colour or colour is None:
            return line
        first, space, rest = line.partition(" ")
        return f"{colour}{first}{_RESET}{space}{rest}"


def _to_stream(stream: TextIO) -> logging.Handler:
    handler = logging.StreamHandler(stream)
    # https://no-color.org: set to anything, it means no colours.
    handler.setFormatter(StreamFormatter(colour=stream.isatty() and not os.environ.get("NO_COLOR")))
    return handler


def _leads_to_journal(stream: TextIO) -> bool:
    """Tell whether systemd connected the stream to the journal: it names its device and inode (systemd.exec(5))."""
    try:
        status = os.fstat(stream.fileno())
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def _encodable(text: str) -> str:
    """Replace what stands for bytes that were no text: the journal's own library encodes strictly."""
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()
