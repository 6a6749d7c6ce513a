"""The files of a configuration, as they are on the disk: the main file and its drop-ins.

Drop-ins are the `*.toml` of the directory beside the main file, `/etc/portfwd.d` for `/etc/portfwd.toml`, in name
order; hidden ones are not read. Nothing but a regular file of a sane size is read, so that no FIFO and no device
holds anything up. What the texts say is not looked at here.
"""

import errno
import os
import shlex
import stat
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fwdaemon.core.text import GrammarError, printed
from fwdaemon.errors import KernelError, Problem

MOST_BYTES: Final = 4 << 20

# What editors and package managers leave beside a file, and no more meant to be read than a hidden one.
_BACKUPS: Final = ("~", ".bak", ".old", ".orig", ".save", ".swp", ".rpmnew", ".rpmsave", ".rpmorig")
# What is no fault of the file that could not be read for it.
_SHORTAGES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


class UnfitError(OSError):
    """Something is not fit to be a file of the configuration; `strerror` says why, `remedy` what to do."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(None, reason)
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class Files:
    """What was read: the texts by path, the main file first; what could not be; and what lies beside, and is not."""

    main: Path
    sources: dict[Path, bytes] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    ignored: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Draft:
    """A drop-in to be read as if it had this text, and not at all where that is `None`; `name` has no directory."""

    name: str
    text: bytes | None


def drop_in_directory(main: Path) -> Path | None:
    """Name the directory of the drop-ins of a main file, if it can have one."""
    directory = main.with_suffix(".d") if main.name else main
    return None if directory == main else directory


def read_files(main: Path, draft: Draft | None = None) -> Files:
    """Read a main file and its drop-ins, one of them from a draft.

    Raises:
        KernelError: the machine is short of what it takes to read any file; that is no fault of these.

    """
    problems: list[Problem] = []
    drop_ins, ignored = _listed(main, problems)
    found = Files(main, {}, problems, ignored)
    drafted = {} if draft is None else {(drop_in_directory(main) or main.parent) / draft.name: draft.text}
    for file in (main, *sorted({*drop_ins, *drafted})):
        try:
            text = drafted[file] if file in drafted else read_regular(file)
            if text is not None:
                found.sources[file] = text
        except OSError as error:
            problems.append(_unreadable(file, error, is_main=file == main))
    return found


def read_regular(path: Path, most: int = MOST_BYTES) -> bytes:
    """Read a regular file, without waiting for anything else; raise OSError where it is none, or too large."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY), "rb") as file:
        status = os.fstat(file.fileno())
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(None, "Is a directory")
        if not stat.S_ISREG(status.st_mode):
            raise UnfitError("It is no regular file", "put one there")
        content = file.read(most + 1)
    if len(content) > most:
        raise UnfitError(f"It has more than {most >> 20} MiB", "write ranges of ports, or split it into drop-ins")
    return content


def _listed(main: Path, problems: list[Problem]) -> tuple[list[Path], tuple[Path, ...]]:
    """List the drop-ins, and what lies beside them and will not be read."""
    directory = drop_in_directory(main)
    if directory is None:
        return [], ()
    misnamed = tuple(_misnamed(main))
    try:
        shown = sorted(file for file in directory.iterdir() if not _is_editors_own(file.name))
    except FileNotFoundError:
        return [], misnamed
    except OSError as error:
        problems.append(_unreadable(directory, error, is_main=False))
        return [], misnamed
    read = [file for file in shown if file.suffix == ".toml" and not file.name.startswith(".")]
    return read, (*(file for file in shown if file not in read and not _is_backup(file.name)), *misnamed)


def _misnamed(main: Path) -> Iterator[Path]:
    """Give the directory of drop-ins as other programs call it, if there are any in it."""
    directory = main.with_name(f"{main.name}.d")
    with suppress(OSError):
        if any(file.suffix == ".toml" for file in directory.iterdir()):
            yield directory


def about_ignored(file: Path) -> str:
    """Say why a file beside the drop-ins is not read."""
    if file.is_dir():
        right = file.parent if file.parent.suffix == ".d" else file.with_suffix("").with_suffix(".d")
        return f"{file} is a directory, in which nothing is read; move its drop-ins to {right}, and remove it"
    if file.name.startswith("."):
        why, plain = "as its name begins with a dot", file.name.lstrip(".")
    else:
        why, plain = "as names of drop-ins end in .toml", f"{file.name}.toml"
    return f"{file} is not read, {why}; rename it to {plain} if it is a drop-in, and move it elsewhere if it is none"


def _is_editors_own(name: str) -> bool:
    """Whether a file is hidden and none that could be meant as a drop-in: locks of Emacs are called `.#web.toml`."""
    return name.startswith(".") and (not name.endswith(".toml") or name.startswith(".#") or name == ".toml")


def _is_backup(name: str) -> bool:
    return name.endswith(_BACKUPS) or ".dpkg-" in name or ".ucf-" in name


def about_unread(file: Path, error: OSError) -> str:
    """Say why a file that the configuration names could not be read, and what to do.

    Raises:
        KernelError: the machine is short of what it takes to read any file.

    """
    return f"{file} {_unreadable(file, error, is_main=False).text}"


def _unreadable(file: Path, error: OSError, *, is_main: bool) -> Problem:
    reason = error.strerror or type(error).__name__
    if error.errno in _SHORTAGES:
        raise KernelError(f"{file} cannot be read: {reason}") from error
    match error:
        case UnfitError():
            remedy = error.remedy
        case FileNotFoundError() if is_main and not file.is_symlink():
            remedy = 'create it, a line "[daemon]" will do, or name another with --config'
        case FileNotFoundError():
            remedy = "fix the link, or remove it" if file.is_symlink() else "create it"
        case NotADirectoryError():
            remedy = "only a directory of *.toml files may have this name; rename it"
        case IsADirectoryError():
            remedy = "put a file there"
        case PermissionError():
            remedy = "let root read it" if os.geteuid() == 0 else "run this as root"
        case _ if error.errno == errno.ELOOP:
            remedy = "its links lead back to it; put a file there"
        case _:
            remedy = "put a regular file there"
    return Problem(file, 1, f"cannot be read: {reason}; {remedy}")


_MOST_SECRET: Final = 4096


def read_secret(path: Path) -> str:
    """Read a password from a file that only root can read or change; a line feed at its end is none of it.

    Raises:
        GrammarError: it cannot be read, or others can read it.

    """
    for weak in weak_points(path):
        raise GrammarError(f"{weak.file} {weak.text}")
    try:
        if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            name = shlex.quote(str(path))
            raise GrammarError(f"{path}: others than root can read the password", f"run chmod 600 {name}")
        return read_regular(path, _MOST_SECRET).decode().rstrip("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise GrammarError(f"{path}: the password cannot be read: {reason}") from error


# Whether only root can change a configuration, as sshd's StrictModes asks it of keys.
#
# A user who can write a file, replace it, or put another in one of the directories on the way to it, could open any
# port. So each of them, and each link among them, has to belong to root, and no one else may write it. In a directory
# with the sticky bit, as /tmp, others cannot replace what is not theirs; but they could add a drop-in.
ROOT: Final = frozenset({0})

_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH
# As the kernel's.
_MOST_LINKS: Final = 40


def unguarded(files: Files, owners: frozenset[int] = ROOT) -> list[Problem]:
    """Report everything on the way to these files that others than `owners` could change, each once."""
    found: dict[Path, Problem] = {}
    for file in files.sources:
        found |= {problem.file: problem for problem in weak_points(file, owners)}
    directory = drop_in_directory(files.main)
    if directory is not None and directory.is_dir():
        found |= {problem.file: problem for problem in weak_points(directory, owners)}
    return list(found.values())


def weak_points(path: Path, owners: frozenset[int] = ROOT) -> Iterator[Problem]:
    """Report what others than `owners` could change of a file or directory, and of what leads to it."""
    here, parts, links = Path("/"), deque(path.absolute().parts[1:]), 0
    yield from _judge(here, _owner_and_mode(here), owners, is_last=not parts)
    while parts:
        part = parts.popleft()
        there = here.parent if part == ".." else here / part
        try:
            status = _owner_and_mode(there)
        except OSError:
            return  # reading it reports that
        yield from _judge(there, status, owners, is_last=not parts)
        if not stat.S_ISLNK(status[1]):
            here = there
            continue
        links += 1
        target = there.readlink()
        if links > _MOST_LINKS:
            return
        here = Path("/") if target.is_absolute() else here
        parts.extendleft(reversed(target.parts[target.is_absolute() :]))


def _owner_and_mode(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_uid, status.st_mode


def _judge(path: Path, status: tuple[int, int], owners: frozenset[int], *, is_last: bool) -> Iterator[Problem]:
    (owner, mode), name = status, shlex.quote(str(path))
    is_link, is_passage = stat.S_ISLNK(mode), stat.S_ISDIR(mode) and not is_last
    shared = 0 if is_link or (is_passage and mode & stat.S_ISVTX) else mode & _OTHERS
    commands = []
    if owner not in owners:
        commands.append(f"chown {'-h ' if is_link else ''}root {name}")
    if shared:
        commands.append(f"chmod go-w {name}")
    if commands:
        what = (
            f"belongs to user {owner} and has mode {stat.S_IMODE(mode):04o}, so users other than root could open ports"
        )
        yield Problem(path, 1, f"{what}; look at what is there, and then run {printed(' && '.join(commands), None)}")
