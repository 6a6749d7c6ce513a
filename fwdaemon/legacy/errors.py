"""What a helper cannot do; each text is for the daemon, which makes it a `KernelError`."""

from fwdaemon.legacy.model import Rule


class HelperError(Exception):
    """Base of all of them.

    After a `final` one the process is not to be trusted any more; an `unusable` one will not go away by trying again.
    """

    final = False
    unusable = False


class LockError(HelperError):
    """Somebody else holds iptables' lock, and goes on holding it, or it cannot be opened."""


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
