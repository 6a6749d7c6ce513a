"""Which kind of file a text is. Only its content tells: such files carry any name."""

import re
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Final

from fwdaemon.config.text import quote
from fwdaemon.importing.findings import BrokenFileError

_LEADING_COMMENTS: Final = re.compile(r"(?:\s|//[^\n]*|/\*(?:[^*]|\*(?!/))*\*/)*")
_TABLE: Final = re.compile(r"\*[a-z]+\s*")
_ASSIGNMENT: Final = re.compile(r"\s*(?:export\s+)?(?:PUBLIC_IP|PRIVATE_IP|PORTS)\s*=.*")
_ADDRESS: Final = re.compile(r"[0-9A-Fa-f]*[.:][0-9A-Fa-f.:]*(?:/\S*)?\s+\S.*")


class Kind(StrEnum):
    """A kind of file; the value is what a person calls it."""

    HOOKS_JSON = "hooks.json of libvirt-hook-qemu"
    ROUTED_IPS = "addresses of the routed-ips hook"
    PORTS_SCRIPT = "one domain's file of a bash hook"
    IPTABLES_SAVE = "output of iptables-save"
    EMPTY = "nothing but comments"


def recognise(file: Path, text: str) -> Kind:
    """Tell the kind of a file.

    Raises:
        BrokenFileError: it is none of them.

    """
    match = _LEADING_COMMENTS.match(text)
    if match is not None and text[match.end() : match.end() + 1] in {"{", "["}:
        return Kind.HOOKS_JSON
    lines = list(_significant(text))
    if not lines:
        return Kind.EMPTY
    for kind, pattern in _PATTERNS:
        if any(pattern.fullmatch(line) for _, line in lines):
            return kind
    number, line = lines[0]
    raise BrokenFileError(file, number, f"{quote(line)} is of no known kind of file; {_REMEDY}")


def _significant(text: str) -> Iterator[tuple[int, str]]:
    """Yield what is neither blank nor a comment, with its number."""
    for number, line in enumerate(text.split("\n"), 1):
        stripped = line.strip()
        if stripped and not stripped.startswith("#"):
            yield number, stripped


_PATTERNS: Final = (
    (Kind.IPTABLES_SAVE, _TABLE),
    (Kind.PORTS_SCRIPT, _ASSIGNMENT),
    (Kind.ROUTED_IPS, _ADDRESS),
)
_REMEDY: Final = (
    "give hooks.json of libvirt-hook-qemu, a routed-ips file, a bash hook's file with PRIVATE_IP= and PORTS=,"
    " or what iptables-save prints"
)
