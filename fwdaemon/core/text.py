"""Text from outside made harmless, and shown to people. Pure."""

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Final

from fwdaemon.errors import PortfwdError

# How values are shown to people, and the error with which a single value is refused.
#
# Names in a configuration may be hostile (newlines, terminal escapes, 200 characters), so no message ever holds one
# raw.
_LONGEST_SHOWN = 80
_WIDEST_SHOWN_BITS = 64
# An integer gets here only when huge: str() refuses more than 4300 digits, which TOML can hold in hexadecimal.
_KINDS = ((int, "a huge integer"), (float, "a float"), (list, "an array"), (dict, "a table"))
_FLAGS = dict.fromkeys(("true", "yes", "on", "1"), True) | dict.fromkeys(("false", "no", "off", "0"), False)
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}

_NEGATION = re.compile(r"!|\u2260|\b(?i:not|except|but|without)\s")


class GrammarError(PortfwdError):
    """One value does not follow the grammar: `what` is wrong with it, and the `remedy` says what to write instead.

    With values that are `right`, it is to write these, and what else is to be said stands behind them.
    """

    def __init__(self, what: str, remedy: str = "", *, right: str | Sequence[str] | None = None) -> None:
        self.what, self.right = what, (right,) if isinstance(right, str) else right
        self.remedy = remedy if self.right is None else f"write {', '.join(map(quote, self.right))}{remedy}"
        super().__init__(f"{what}; {self.remedy}" if self.remedy else what)


def quote(text: str) -> str:
    """Write a text as TOML would, on one line, with everything unprintable escaped and anything long cut."""
    cut = text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 1] + "…"
    return '"' + "".join(map(_escape, cut)) + '"'


def refuse_negation(text: str, remedy: str) -> None:
    """Refuse what other programs write for "all but": without its sign, it would be the contrary."""
    if _NEGATION.search(text):
        raise GrammarError(f"{quote(text)} says what is kept out, which cannot be written", remedy)


def printed(text: str, most: int | None = _LONGEST_SHOWN) -> str:
    """Write a part of a text as it stands there, but on one line, the unprintable escaped and more than `most` cut."""
    cut = text if most is None or len(text) <= most else text[: most - 1] + "…"
    return "".join(character if character.isprintable() else _escape(character) for character in cut)


def flag_meant(value: object) -> bool | None:
    """Say which of true and false was meant by something else; `None` where that is not clear."""
    return _FLAGS.get(str(value).lower())


def show(value: object) -> str:
    """Show any TOML value briefly: what it is and, where that is short, what it says."""
    match value:
        case bool():
            return str(value).lower()
        case str():
            return quote(value)
        case int() if value.bit_length() <= _WIDEST_SHOWN_BITS:
            return str(value)
        case _:
            return next((name for kind, name in _KINDS if isinstance(value, kind)), "a date or time")


def suggest(word: str, known: Iterable[str]) -> str:
    """Say which of the known words was probably meant, or else name them all."""
    from difflib import get_close_matches  # noqa: PLC0415 - 2 ms of `--help`

    choices = sorted(known)
    close = get_close_matches(word[:_LONGEST_SHOWN].lower(), choices, n=1)
    return f"did you mean {quote(close[0])}?" if close else f"write one of {', '.join(choices)}"


def _escape(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    if character.isprintable():
        return character
    code = ord(character)
    return f"\\u{code:04X}" if code <= 0xFFFF else f"\\U{code:08X}"  # noqa: PLR2004 - the last code of four digits


# Names from outside made harmless.
#
# A domain may be called anything: quotes, newlines, `--comment`, 200 characters. None of that may reach a rule, a
# terminal or a log line as syntax.
_LABEL_LENGTH = 40
_SHOWN_LENGTH = 80
_UNSAFE = re.compile(r"[^A-Za-z0-9_.]")
# At most 15 bytes: the kernel's IFNAMSIZ less the final NUL. A trailing "+" or "*" would be a wildcard in a rule.
_INTERFACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}")
_MAC = re.compile(r"[0-9a-fA-F]{2}(?::[0-9a-fA-F]{2}){5}")
_ESCAPED = re.compile(r"\\.")
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*+"', re.DOTALL)


@lru_cache(maxsize=256)  # a guest's name is in the rules and lines of all its forwards
def label(name: str) -> str:
    """Give letters, digits, `_` and `.` only, at most 40 of them: safe inside a quoted comment of any rule language."""
    return _UNSAFE.sub("_", name)[:_LABEL_LENGTH]


@lru_cache(maxsize=256)
def shown(name: str) -> str:
    """Give the name for one line of text, at most 80 characters; what could not be printed there is escaped."""
    visible = printable(name)
    return visible if len(visible) <= _SHOWN_LENGTH else visible[: _SHOWN_LENGTH - 1] + "…"


def printable(text: str) -> str:
    """Give a text of any length for one line; what could not be printed there is escaped."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def is_interface_name(name: str) -> bool:
    """Whether a name from libvirt or the kernel may stand in a rule of any language as one plain interface."""
    return _INTERFACE.fullmatch(name) is not None


def is_mac(text: str) -> bool:
    """Whether a text is a MAC address, and may stand in a rule of any language."""
    return _MAC.fullmatch(text) is not None


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
    """Give a rule that `iptables-save` printed with nothing in its quotes, where all is free text."""
    return _QUOTED.sub('""', rule)


_SECONDS: Final = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}


def parse_seconds(text: str, shortest: int, longest: int) -> int:
    """Read a duration such as `90s`, `30m`, `2h` or `1d` as seconds; raise `GrammarError` if it is none."""
    match = re.fullmatch(r"([0-9]{1,9})([smhd])", text)
    if match is None:
        raise GrammarError(f"{quote(text)} is no duration", 'write a whole number and s, m, h or d, as in "2h"')
    seconds = int(match[1]) * _SECONDS[match[2]]
    if not shortest <= seconds <= longest:
        ends = f"{show_duration(shortest)} to {show_duration(longest)}"
        raise GrammarError(f"{quote(text)} is out of range", f"write a duration from {ends}")
    return seconds


def show_duration(seconds: int) -> str:
    """Write a duration in its two largest units: `1h59m`, `7d`."""
    parts, left = [], seconds
    for unit, length in _SECONDS.items():
        number, left = divmod(left, length)
        parts += [f"{number}{unit}"] if number else []
    return "".join(parts[:2]) or "0s"
