"""Shells that complete a line as they do for a person, with a made-up `kvm-portfwd`, `virsh` and `ip` in their PATH.

bash and zsh run on a terminal of their own, where a line is typed with a TAB in it, and the program at its beginning
prints which arguments it got. fish prints its candidates when it is asked, and inserts them itself.
"""

import os
import pty
import re
import select
import shlex
import subprocess
import termios
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol

from tests.unit import programs

SCRIPTS: Final = Path(__file__).parents[2] / "completion"
NAMES: Final = ("bash", "zsh", "fish")
_PATIENCE_S: Final = 30.0
_PROMPT: Final = "READY> "
# zsh also says that it can take pasted text apart from typed.
_AT_PROMPT: Final = re.escape(_PROMPT) + r"(\x1b\[\?2004h)?$"
# Prints its arguments in hexadecimal, each ended by a NUL.
_TELLTALE: Final = """#!/bin/sh
printf 'TOLD='; [ $# = 0 ] || printf '%s\\0' "$@" | od -An -v -tx1 | tr -d ' \\n'; printf ';\\n'
"""


class Shell(Protocol):
    """A shell that has loaded its script."""

    def complete(self, line: str) -> list[str]:
        """Type a line, TAB and `X`, and give the arguments that come of it: a word that is complete stands apart."""
        ...


def write_programs(directory: Path, **scripts: str) -> None:
    """Put programs into a directory, `kvm-portfwd` among them; each is the text of a shell script."""
    for name, text in {"kvm-portfwd": _TELLTALE, **scripts}.items():
        program = directory / name
        program.write_text(text)
        program.chmod(0o755)


@contextmanager
def start(name: str, home: Path, path: Path) -> Iterator[Shell]:
    """Run a shell in `home`, where it writes its own files, with the programs in `path` before those of the machine."""
    environment = {
        "HOME": str(home),
        "PATH": f"{path}:/usr/bin:/bin:/usr/sbin:/sbin",
        "TERM": "dumb",
        "LC_ALL": "C.UTF-8",
    }
    if name == "fish":
        yield Fish(home, environment)
        return
    with _terminal(_argv(name, home), home, environment) as terminal:
        yield Typist(terminal)


def _argv(name: str, home: Path) -> list[str]:
    program = programs.find(name)
    script = shlex.quote(str(SCRIPTS / f"kvm-portfwd.{name}"))
    if name == "bash":
        (home / "bashrc").write_text(f"PS1='{_PROMPT}'; source {script}\n")
        return [program, "--noprofile", "--rcfile", str(home / "bashrc"), "-i"]
    functions = home / "functions"
    functions.mkdir()
    (functions / "_kvm-portfwd").symlink_to(SCRIPTS / "kvm-portfwd.zsh")
    prepare = f"fpath=({shlex.quote(str(functions))} $fpath); autoload -U compinit; compinit -u -D"
    (home / ".zshrc").write_text(f"PS1='{_PROMPT}'\n{prepare}\n")
    return [program, "-o", "no_global_rcs", "-i"]


class Typist:
    """Types on a shell's terminal."""

    def __init__(self, terminal: int) -> None:
        self._terminal = terminal
        self._read_until(_AT_PROMPT)

    def complete(self, line: str) -> list[str]:
        """See `Shell.complete`."""
        os.write(self._terminal, f"kvm-portfwd {line}\tX\r".encode())
        told = self._read_until("TOLD=([0-9a-f]*);(?s:.*)" + _AT_PROMPT)
        return bytes.fromhex(told[1]).decode().split("\0")[:-1]

    def _read_until(self, pattern: str) -> re.Match[str]:
        shown, deadline = b"", time.monotonic() + _PATIENCE_S
        while (found := re.search(pattern, shown.decode(errors="replace"))) is None:
            ready, _, _ = select.select([self._terminal], [], [], max(deadline - time.monotonic(), 0))
            assert ready, f"the shell does not go on; it showed {shown!r}"
            shown += os.read(self._terminal, 65536)
        return found


class Fish:
    """Asks fish."""

    def __init__(self, home: Path, environment: Mapping[str, str]) -> None:
        self._home = home
        self._environment = environment

    def complete(self, line: str) -> list[str]:
        """See `Shell.complete`."""
        *words, last = shlex.split(line + "X")
        offered = self._offered(line)
        if len(offered) != 1:
            return [*words, last]
        # fish puts no blank where it believes that a word goes on.
        return [*words, f"{offered[0]}X"] if offered[0][-1] in "/=@:.,-" else [*words, offered[0], "X"]

    def _offered(self, line: str) -> list[str]:
        """Give the candidates that continue the line; those that fish only finds similar to it are none."""
        script = shlex.quote(str(SCRIPTS / "kvm-portfwd.fish"))
        argv = [programs.find("fish"), "--no-config", "--command", f"source {script}; complete --do-complete $argv[1]"]
        done = subprocess.run(  # noqa: S603  words of ours
            [*argv, "--", f"kvm-portfwd {line}"],
            cwd=self._home,
            env=dict(self._environment),
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stderr == ""
        candidates = [candidate.partition("\t")[0] for candidate in done.stdout.splitlines()]
        typed = shlex.split(line + "X")[-1][:-1]
        return [candidate for candidate in candidates if candidate.startswith(typed)]


@contextmanager
def _terminal(argv: list[str], home: Path, environment: Mapping[str, str]) -> Iterator[int]:
    """Run a program on a terminal wide enough that nothing wraps, and end it."""
    outer, inner = pty.openpty()
    termios.tcsetwinsize(outer, (50, 500))
    process = subprocess.Popen(  # noqa: S603  words of ours
        [programs.find("setsid"), "--ctty", *argv],
        cwd=home,
        env=dict(environment),
        stdin=inner,
        stdout=inner,
        stderr=inner,
    )
    os.close(inner)
    try:
        yield outer
    finally:
        process.kill()
        process.wait()
        os.close(outer)
