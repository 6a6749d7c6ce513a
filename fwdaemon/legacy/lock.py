"""The lock all of iptables' own programs take, so that nobody's changes get lost between a read and a commit."""

import fcntl
import os
import signal
from pathlib import Path
from types import FrameType

from fwdaemon.legacy.errors import LockError

# As libxtables has it; the variable is libxtables', too.
DEFAULT_PATH = "/run/xtables.lock"
PATH_VARIABLE = "XTABLES_LOCKFILE"
_PATIENCE = 20.0


def lock_path() -> str:
    """Where the lock file is."""
    return os.environ.get(PATH_VARIABLE) or DEFAULT_PATH


class XtablesLock:
    """Holds the lock or not. For the main thread of a process that uses SIGALRM for nothing else.

    The file stays open in between, so that whoever watches it sees only others come and go.
    """

    def __init__(self) -> None:
        self._path = lock_path()
        self._file = -1
        self._held = False
        signal.signal(signal.SIGALRM, _give_up)

    def acquire(self) -> None:
        """Take the lock, unless it is held already.

        Raises:
            LockError: it could not be had within 20 seconds.

        """
        if self._held:
            return
        signal.setitimer(signal.ITIMER_REAL, _PATIENCE)
        try:
            self._open()
            fcntl.flock(self._file, fcntl.LOCK_EX)
        except TimeoutError as error:
            raise LockError(f"somebody has held {self._path} for more than {_PATIENCE:.0f} seconds") from error
        except OSError as error:
            raise LockError(f"cannot lock {self._path}: {error.strerror}") from error
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        self._held = True

    def release(self) -> None:
        """Give the lock back, if it is held."""
        if self._held:
            fcntl.flock(self._file, fcntl.LOCK_UN)
            self._held = False

    def _open(self) -> None:
        """Open the file there is now; somebody may have replaced it."""
        if self._file >= 0 and not _same(self._file, self._path):
            os.close(self._file)
            self._file = -1
        if self._file < 0:
            self._file = os.open(self._path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _same(file: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(file), Path(path).stat())
    except FileNotFoundError:
        return False


def _give_up(_number: int, _frame: FrameType | None) -> None:
    raise TimeoutError
