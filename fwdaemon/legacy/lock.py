"""The lock all of iptables' own programs take, so that nobody's changes get lost between a read and a commit."""

import fcntl
import os
import signal
from pathlib import Path
from types import FrameType

from fwdaemon.legacy.model import Rule

# What a helper cannot do; each text is for the daemon, which makes it a `KernelError`.


class HelperError(Exception):
    """Base of all of them.

    After a `final` one the process is not to be trusted any more; an `unusable` one will not go away by trying again.
    After a `late` one nobody should wait at once again.
    """

    final = False
    unusable = False
    late = False


class LockError(HelperError):
    """Somebody else holds iptables' lock, and goes on holding it, or it cannot be opened."""

    late = True


class LibraryError(HelperError):
    """python-iptables is not there, or does not fit."""

    final = True
    unusable = True


class NoTableError(HelperError):
    """The kernel does not have a table, or does not let us have it."""

    unusable = True


class RefusedError(HelperError):
    """The library does not take a rule; what state the process is in nobody knows."""

    final = True

    def __init__(self, rule: Rule, reason: str) -> None:
        self.reason = reason
        super().__init__(f"iptables' library refused a rule: {reason}; the rule is {rule}")


class TableError(HelperError):
    """The kernel refused a commit, which was wrong, or came too late (`again`)."""

    def __init__(self, reason: str, *, again: bool = False) -> None:
        self.again = again
        super().__init__(reason)


# As libxtables has it; the variable is libxtables', too.
DEFAULT_PATH = "/run/xtables.lock"
PATH_VARIABLE = "XTABLES_LOCKFILE"


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

    def acquire(self, patience: float) -> None:
        """Take the lock, unless it is held already.

        Raises:
            LockError: it could not be had within `patience` seconds.

        """
        if self._held:
            return
        signal.setitimer(signal.ITIMER_REAL, patience)
        try:
            self._open()
            fcntl.flock(self._file, fcntl.LOCK_EX)
        except TimeoutError as error:
            raise LockError(f"another program has held {self._path} for more than {patience:g} seconds") from error
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
