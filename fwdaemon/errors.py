"""Every error this program raises on purpose.

They share one base, so that the command line can turn each into one line on standard error, without a traceback.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


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
        said = next((line for line in stderr.splitlines() if line.strip()), "it printed nothing")
        super().__init__(f"{' '.join(self.argv)} failed with status {returncode}: {said}")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong at one place of the configuration, with what to write instead."""

    file: Path
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.text}"


class ConfigError(PortfwdError):
    """The configuration is refused; `problems` holds every reason, in the order of file and line."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))
