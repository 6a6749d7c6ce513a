"""Running programs of the machine itself, outside any lab host."""

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

Completed = subprocess.CompletedProcess[str]


class LabError(RuntimeError):
    """The lab itself is broken or cannot be built; never the fault of what is under test."""


def run(
    argv: Sequence[str | Path],
    *,
    stdin: str = "",
    check: bool = True,
    timeout: float = 60,
    env: Mapping[str, str] | None = None,
) -> Completed:
    """Run `argv` to its end; a failure carries what the program printed, because it cannot be looked at afterwards."""
    words = [str(word) for word in argv]
    done = subprocess.run(  # noqa: S603  the lab chose the words
        words, input=stdin, capture_output=True, text=True, timeout=timeout, env=env, check=False
    )
    if check and done.returncode != 0:
        said = (done.stderr + done.stdout).strip()[-4000:]
        raise LabError(f"{' '.join(words)} failed with status {done.returncode}:\n{said}")
    return done
