"""Names from outside made harmless.

A domain may be called anything: quotes, newlines, `--comment`, 200 characters. None of that may reach a rule, a
terminal or a log line as syntax.
"""

import re
from collections.abc import Iterator
from functools import lru_cache

_LABEL_LENGTH = 40
_SHOWN_LENGTH = 80
_UNSAFE = re.compile(r"[^A-Za-z0-9_.]")
# At most 15 bytes: the kernel's IFNAMSIZ less the final NUL. A trailing "+" or "*" would be a wildcard in a rule.
_INTERFACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}")
_ESCAPED = re.compile(r"\\.")
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*+"', re.DOTALL)


def label(name: str) -> str:
    """Give letters, digits, `_` and `.` only, at most 40 of them: safe inside a quoted comment of any rule language."""
    return _UNSAFE.sub("_", name)[:_LABEL_LENGTH]


@lru_cache(maxsize=256)  # a guest's name is in the lines of all its forwards
def shown(name: str) -> str:
    """Give the name for one line of text, at most 80 characters; what could not be printed there is escaped."""
    visible = printable(name)
    return visible if len(visible) <= _SHOWN_LENGTH else visible[: _SHOWN_LENGTH - 1] + "…"


def printable(text: str) -> str:
    """Give a text of any length for one line; what could not be printed there is escaped."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def is_interface_name(name: str) -> bool:
    """Whether a name that libvirt or the kernel told may stand in a rule of any language as one plain interface."""
    return _INTERFACE.fullmatch(name) is not None


def rule_lines(save: str) -> Iterator[str]:
    """Give the lines that `iptables-save` prints: a line break inside quotes is one of a comment, and ends no rule.

    iptables escapes quotes and backslashes in a comment, and nothing else (xtables_save_string). Where the quotes never
    close, as iptables would not write it, each line is one.
    """
    held: list[str] = []
    is_open = False
    for line in save.split("\n"):
        held.append(line)
        if is_open or not line.startswith("#"):
            is_open ^= _ESCAPED.sub("", line).count('"') % 2 == 1
        if not is_open:
            yield "\n".join(held)
            held = []
    yield from held


def unquoted(rule: str) -> str:
    """Give a rule that `iptables-save` printed with nothing in its quotes, where all is somebody's own text."""
    return _QUOTED.sub('""', rule)
