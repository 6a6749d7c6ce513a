"""Every error this program raises on purpose.

They share one base, so that the command line can turn each into one line on standard error, without a traceback.
"""

import errno
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple, Protocol

_NO_LABELS = (
    "our connections need a label: load the kernel's module xt_connlabel, or boot a kernel that has"
    " CONFIG_NF_CONNTRACK_LABELS and CONFIG_NETFILTER_XT_MATCH_CONNLABEL"
)

# What it may raise to take JSON for more than it is: other members, other types, and numbers that are infinite.
STRANGE: Final = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)
_SHORT = {errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class PortfwdError(Exception):
    """Base of all errors a user may meet; its text is one complete sentence for that user."""


class LibvirtUnavailableError(PortfwdError):
    """libvirt did not answer. This never means that there are no domains."""


class KernelError(PortfwdError):
    """The kernel refused something, or could not be asked."""


class ProcessError(PortfwdError):
    """A program we started failed.

    It carries the arguments, the text given on standard input, the exit status and all that the program printed. Its
    own text is one line: the first that was printed, which is where `nft` says what it did not like.
    """

    def __init__(self, argv: Sequence[str], stdin: str, returncode: int, stderr: str) -> None:
        self.argv = tuple(argv)
        self.stdin = stdin
        self.returncode = returncode
        self.stderr = stderr
        lines = [line for line in stderr.splitlines() if line.strip()]
        # iptables warns first that there is no file with names for connection labels.
        said = next((line for line in lines if not line.startswith("Warning: ")), "".join(lines[:1]))
        text = f"{' '.join(self.argv)} failed with status {returncode}: {said or 'it printed nothing'}"
        super().__init__(text + label_remedy("\n".join(line for line in lines if not line.startswith("Warning: "))))


class HangingError(ProcessError):
    """A program did nothing for so long that it was ended."""


def shortage(error: BaseException) -> str | None:
    """Name what is short where that is why something failed: the same text wherever it was wanted."""
    if isinstance(error, OSError) and error.errno in _SHORT:
        return error.strerror
    if isinstance(error, RuntimeError):  # Python's threads fail with nothing else
        return str(error)
    return None if error.__cause__ is None else shortage(error.__cause__)


def ends_the_pass(error: ProcessError) -> bool:
    """Whether a program hung, or none was available: what it would have listed may be there all the same."""
    return isinstance(error, HangingError) or shortage(error) is not None


def label_remedy(said: str) -> str:
    """Say what helps where that is about connection labels which the kernel does not have; else nothing."""
    missing = "connlabel" in said or ("ct label" in said and "not supported" in said)
    return f"; {_NO_LABELS}" if missing else ""


class Place(Protocol):
    """A place of the configuration, as text a user can find it by."""

    @property
    def file(self) -> Path:
        """Which file it is in."""
        ...

    @property
    def line(self) -> int:
        """On which line, counted from 1."""
        ...


class Clash(NamedTuple):
    """That something is claimed at another place too: that place, and the words before and after it."""

    before: str
    other: Place
    after: str

    def __str__(self) -> str:
        return f"{self.before} {self.other} {self.after}"


class Problem(NamedTuple):
    """One thing wrong at one place of the configuration, with what to write instead; `clash` says it as data."""

    file: Path
    line: int
    text: str
    clash: Clash | None = None

    @classmethod
    def of(cls, at: Place, clash: Clash) -> "Problem":
        """Say that what is claimed there is claimed at another place."""
        return cls(at.file, at.line, str(clash), clash)

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.text}"


class ConfigError(PortfwdError):
    """The configuration is refused; `problems` holds every reason, in the order of file and line."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))
