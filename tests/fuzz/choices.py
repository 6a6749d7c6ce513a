"""A fuzzer's bytes as choices: numbers, texts, one of several. The same bytes always make the same choices."""

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

# Names and comments that break out of whatever they are written into, if anything can.
HOSTILE = (
    "",
    " ",
    "--comment",
    "-j ACCEPT\\",
    '"; } flush ruleset #',
    "'$(reboot)",
    "a\n-A PREROUTING -p tcp -m tcp --dport x -j DNAT --to-destination nowhere\n:\n*nat\n-A",
    "a\x85b\u2028c\x0bd\x1ce",
    "\x1b[2J\x07\u202e",
    "\\n\\",
    '"',
    "'",
    "!",
    "\x00",
    "é" * 100,
    "\udc80",
)


class Choices:
    """Bytes that run out: what is chosen after their end is the first of everything."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def over(self) -> bool:
        """Whether all bytes were used."""
        return self._at >= len(self._data)

    def number(self, below: int) -> int:
        """Give a number from 0 to `below` - 1, from one byte, or two where one is too few."""
        size = 1 if below <= 1 << 8 else 2
        return int.from_bytes(self.taken(size), "big") % below

    def one_of(self, items: Sequence[T]) -> T:
        """Give one of several."""
        return items[self.number(len(items))]

    def taken(self, size: int) -> bytes:
        """Give the next bytes, filled up with zeros."""
        found = self._data[self._at : self._at + size]
        self._at += size
        return found.ljust(size, b"\0")

    def text(self) -> str:
        """Give a hostile text, or one of the fuzzer's own."""
        if kind := self.number(len(HOSTILE) + 4):
            return HOSTILE[min(kind, len(HOSTILE)) - 1]
        return self.taken(self.number(64)).decode("utf-8", "backslashreplace")

    def rest(self) -> bytes:
        """Give all bytes that are left."""
        found, self._at = self._data[self._at :], len(self._data)
        return found
