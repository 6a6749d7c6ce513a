"""The file for the textfile collector of Prometheus' node exporter.

Whoever reads it sees the whole of it or none. It goes when the daemon stops, so that nobody takes it for the present;
after a crash its own `metrics_timestamp_seconds` tells how old it is.
"""

import os
from contextlib import suppress
from pathlib import Path

from fwdaemon.metrics.once import WarnOnce


class Textfile:
    """The file at `path`. That it cannot be written is a warning, once, and no error. Its methods block."""

    def __init__(self, path: Path) -> None:
        self._path = path
        # The collector reads every *.prom.
        self._beside = path.with_name(f".{path.name}.new")
        self._warning = WarnOnce()

    def write(self, text: bytes) -> None:
        """Replace it."""
        try:
            self._write(text)
        except OSError as error:
            self._warning.warn(f"no metrics in {self._path}: {error.strerror}; {self._remedy(error)}")
        else:
            self._warning.settle()

    def remove(self) -> None:
        """Take it away."""
        for path in (self._path, self._beside):
            with suppress(OSError):
                path.unlink()

    def _write(self, text: bytes) -> None:
        # O_EXCL follows no link that somebody else left there.
        self._beside.unlink(missing_ok=True)
        opened = os.open(self._beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC)
        with os.fdopen(opened, "wb") as file:
            os.fchmod(file.fileno(), 0o644)
            file.write(text)
        self._beside.replace(self._path)

    def _remedy(self, error: OSError) -> str:
        directory = self._path.parent
        if isinstance(error, FileNotFoundError):
            return f"the directory {directory} has to exist"
        # systemd.exec(5): ProtectSystem=strict makes everything read-only that is not named.
        return (
            f'the service may write there once "systemctl edit kvm-portfwd" adds "[Service]" and'
            f' "ReadWritePaths=-{directory}", and after a restart of it'
        )
