"""How values are shown to people, and the error with which a single value is refused.

Names in a configuration may be hostile (newlines, terminal escapes, 200 characters), so no message ever holds one raw.
"""

from collections.abc import Iterable
from difflib import get_close_matches

from fwdaemon.errors import PortfwdError

_LONGEST_SHOWN = 80
_WIDEST_SHOWN_BITS = 64
# An integer gets here only when huge: str() refuses more than 4300 digits, which TOML can hold in hexadecimal.
_KINDS = ((int, "a huge integer"), (float, "a float"), (list, "an array"), (dict, "a table"))
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


class GrammarError(PortfwdError):
    """One value does not follow the grammar; the text says what is wrong with it and what to write instead."""


def quote(text: str) -> str:
    """Write a text as TOML would, on one line, with everything unprintable escaped and anything long cut."""
    cut = text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 1] + "…"
    return '"' + "".join(map(_escape, cut)) + '"'


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
