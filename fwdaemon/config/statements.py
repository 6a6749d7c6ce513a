"""Lines of a configuration that are no statement of TOML: headers, keys and comments as other languages have them."""

import re
from collections.abc import Collection
from difflib import get_close_matches
from typing import Final, TypeAlias

from fwdaemon.config.lines import Spot
from fwdaemon.config.model import ARRAYS, KEYS, TABLES
from fwdaemon.config.node import header
from fwdaemon.core.text import printed, quote

_KNOWN: Final = frozenset(key for keys in KEYS.values() for key in keys)
_BLANKS: Final = "[ \t]*+"
# A header, or what is left of one: brackets that stand apart, or are missing on one side.
_HEADER: Final = re.compile(
    rf"(?P<open>(?:\[{_BLANKS}){{0,4}})[\"']?(?P<name>[A-Za-z]+)[\"']?{_BLANKS}(?P<close>(?:\]{_BLANKS}){{0,4}})"
)
_COMMENTS: Final = ("//", "/*", "<!--", ";", "!", "--")
_OTHER_LANGUAGES: Final = (
    ("JSON", re.compile(r"\s*(?:\{|\[\s*\{)")),
    ("XML", re.compile(r"\s*<(?!!--)")),
    ("YAML", re.compile(r"(?:\s*#[^\n]*\n)*\s*(?:---[ \t]*(?:\n|\Z)|-[ \t]+[\w-]+:|[\w-]+:[ \t]*\n[ \t]+\S)")),
)
_AS_ENTRIES: Final = 'write a header [[forward]] for each entry, and its keys below as domain = "…"'
# `ports:`, and the elements on the lines below.
_YAML_LIST: Final = re.compile(rf":{_BLANKS}(?:#.*)?\n(?P<items>(?:{_BLANKS}-[ \t]++[^\n]*(?:\n|\Z))+)")
_YAML_ITEM: Final = re.compile(rf"^{_BLANKS}-[ \t]++(\"[^\"\\\n]*\"|'[^'\n]*'|[^\s#\"'][^\s#]*)", re.MULTILINE)
_LONE_VALUE: Final = re.compile(r"(?:-[ \t]+)?(?:\"[^\"\\]*\"|'[^']*'|[0-9][^\s=]*),?[ \t]*(?:\][ \t]*)?(?:#.*)?")
# What shells and other languages write before a key.
_BEFORE_KEY: Final = re.compile(r"(?P<before>[^\s=\"'#\[\]{}]+)[ \t]*(?P<key>[A-Za-z_]+)[ \t]*[=:]")

_FLAGS: Final = frozenset({"ip_forward", "keep_guests_online", "localhost", "log", "masquerade"})
# Keys without which an entry opens no more than with them.
_SPARE: Final = frozenset({"address", "assign", "mac", "proxy"})

# Where the mistake is, as an offset, and what to say of it.
Finding: TypeAlias = tuple[int, str]


def other_language(stop: Spot, _reason: str) -> Finding | None:
    """A whole file of JSON, XML or YAML."""
    if stop.text[: stop.offset].strip() not in {"", "[", "-", "---"} and stop.assigned is not None:
        return None
    begin = len(stop.text) - len(stop.text.lstrip())
    for name, pattern in _OTHER_LANGUAGES:
        match = pattern.match(stop.text)
        if match and stop.line_of(stop.offset) <= stop.line_of(match.end()):
            if _is_table(match.group().strip().removesuffix(":")):
                return None
            return begin, f"this is {name}; {_AS_ENTRIES}"
    return None


def statement(stop: Spot, _reason: str) -> Finding | None:
    """What should be `key = value` or a header, and is not."""
    if stop.opened or stop.assigned is not None:
        return None
    line = stop.line_from(stop.line_start).strip()
    said = _header(line) or comment_mark(line) or _key(stop, line) or _anything(line)
    return stop.line_start, said


def _header(line: str) -> str | None:
    match = _HEADER.match(line)
    if match is None or not _is_table(match["name"]):
        return None
    if match["open"] and line.startswith(".", match.end()):
        return f"{printed(line)} is a table in a table, and no key holds one; move its keys up, and remove the header"
    right = header(match["name"])
    if line.startswith(right) and not line.startswith("]", len(right)):
        return f"there is more on the line of {right}; write it on a line of its own"
    if match["open"] or match["close"]:
        return f"the brackets do not match; write {right}"
    if re.fullmatch(r"[:{]?[ \t]*(?:#.*)?", line[match.end() :]):
        return f"a header has brackets; write {right} in place of {quote(line.partition('#')[0].rstrip())}"
    return None


def _is_table(name: str) -> bool:
    return name in TABLES


def comment_mark(line: str) -> str | None:
    """Say how a comment begins, where a line begins with the mark of one in another language."""
    mark = next((mark for mark in _COMMENTS if line.startswith(mark)), None)
    return None if mark is None else f'a comment begins with "#"; write "#" in place of {quote(mark)}'


def _key(stop: Spot, line: str) -> str | None:
    """Say what lacks between a key and its value, or stands before it."""
    if _LONE_VALUE.fullmatch(line):
        return "a value stands here without a key; move it between the brackets of its array"
    before = _BEFORE_KEY.match(line)
    if before and not _is_known(before["before"]) and _is_known(before["key"]):
        return f"{quote(before['before'])} stands before a key; remove it"
    return _equals(stop) if _is_known(stop.key) else None


def _is_known(word: str) -> bool:
    """Whether a word is a key, or a misspelt one."""
    return not _is_table(word) and bool(get_close_matches(word[:80].lower(), _KNOWN, n=1, cutoff=0.8))


def _equals(stop: Spot) -> str:
    key = printed(stop.key)
    if match := _YAML_LIST.match(stop.text, stop.offset):
        right = f"{key} = [{', '.join(map(in_quotes, _YAML_ITEM.findall(match['items'])))}]"
        return f"an array has brackets and commas; write {printed(right)} in place of this line and its list"
    mark = re.match(r":=|\+=|:|(?:\[\][ \t]*)?=?>?", stop.rest)
    if mark and mark.group():
        return f'{quote(mark.group())} stands after {key}; write "=" in its place'
    return f'"=" is missing; write "=" after {key}'


def _anything(line: str) -> str:
    first, *_ = line.split() or [line]
    what = f"{quote(first)} begins neither a key with its value nor a header"
    return f'{what}; write "#" before it, and what it means as KEY = VALUE'


def in_quotes(lexeme: str) -> str:
    """Write a value in quotes, unless it has some."""
    return lexeme if lexeme.startswith(('"', "'")) else quote(lexeme)


def emptied(stop: Spot, mark: str, arrays: Collection[str]) -> str:
    """Say what to do about a key without a value, which may be what keeps an entry closed."""
    what = f"{quote(stop.key)} has no value{mark and f' before {quote(mark)}'}"
    if stop.key in _FLAGS:
        return f'{what}; write true or false after the "="'
    example = '["…"] with one in it' if stop.key in arrays else "one"
    return f'{what}; write {example} after the "=", or remove {_removable(stop)}'


def _removable(stop: Spot) -> str:
    tables = re.findall(r"^[ \t]*\[{1,2}[ \t]*(\w+)", stop.text[: stop.offset], re.MULTILINE)
    return "the whole entry" if tables and tables[-1] in ARRAYS and stop.key not in _SPARE else "the line"
