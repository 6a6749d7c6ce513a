"""Written records of what we changed on the host, for what the kernel itself does not tell whose doing it was.

They lie in /run: a reboot forgets them together with the changes. A later run reads them, and puts back what is wanted
no more.
"""

import logging
from collections.abc import Iterable
from pathlib import Path

_log = logging.getLogger(__name__)

_DIRECTORY = Path("/run/kvm-portfwd")


class Ledger:
    """One record, a set of lines; `name` is that of its file. It is read once, and written anew with each change."""

    def __init__(self, name: str, directory: Path = _DIRECTORY) -> None:
        self._path = directory / name
        self._lines = _read(self._path)

    @property
    def lines(self) -> frozenset[str]:
        """What is recorded."""
        return self._lines

    def write(self, lines: Iterable[str]) -> None:
        """Record these lines and no others. That they cannot be written is a warning, and they count even so."""
        lines = frozenset(lines)
        if lines == self._lines:
            return
        self._lines = lines
        new = self._path.with_name(f"{self._path.name}.new")
        try:
            self._path.parent.mkdir(mode=0o755, exist_ok=True)
            new.write_text("".join(f"{line}\n" for line in sorted(lines)), errors="surrogateescape")
            new.replace(self._path)
        except OSError as error:
            _log.warning("cannot write %s (%s): what is switched may stay so", self._path, error.strerror)


def _read(path: Path) -> frozenset[str]:
    try:
        return frozenset(path.read_text(errors="surrogateescape").splitlines())
    except OSError:
        return frozenset()
