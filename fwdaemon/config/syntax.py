"""Why a text is not TOML, for people: the right line, and what to write there.

The parser stops where it can go no further, which is often a line after the mistake, and does not say what it misses.
Here the text before that place is looked at again. A remedy never holds more than the text said.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from fwdaemon.config.lines import Spot, Token, spot
from fwdaemon.config.model import ARRAYS
from fwdaemon.config.node import header
from fwdaemon.config.statements import Finding, comment_mark, emptied, in_quotes, other_language, statement
from fwdaemon.core.text import flag_meant, printed, quote
from fwdaemon.errors import Problem

_POSITION: Final = re.compile(r" \(at (?:line (?P<line>\d+), column (?P<column>\d+)|end of document)\)$")
_HEADER: Final = re.compile(r"^[ \t]*(\[{1,2})[ \t]*([A-Za-z0-9_-]+)[ \t]*\]{0,2}(?=[ \t]*(?:#.*)?$)", re.MULTILINE)
_STATEMENT: Final = re.compile(
    r"[ \t]*(?:\[{1,2}[ \t]*[A-Za-z0-9_-]+[ \t]*\]{1,2}[ \t]*(?:#|$)|[\"'A-Za-z0-9_.-]+[ \t]*=)"
)
_BARE: Final = re.compile(r"[^\s,\[\]{}\"'#]+")
# Those of word processors, double and single.
_TYPOGRAPHIC: Final = "\u201c\u201d\u201e\u201f\u2018\u2019\u201a\u201b\u00ab\u00bb"
_PLAIN: Final = str.maketrans(dict.fromkeys(_TYPOGRAPHIC, '"'))
# What a quote without a second one begins, in an array: a value, a quote of the other kind, what ends it, a comment.
_BEGUN: Final = re.compile(r"(?P<value>[^\]\"',\\#]*+)[\"']?[ \t]*+(?P<end>[\],]|)[ \t]*+(?:,[ \t]*+)?(?:#.*)?")
_OTHER_QUOTE: Final = {'"': "'", "'": '"'}
_BRACKETS: Final = {"(": ")", "{": "}"}
# What the parser says of a text that ends with its line, or not at all.
_NO_END: Final = ("Illegal character '\\n'", "Found invalid character '\\n'", "Unterminated", "Expected")
_AROUND: Final = '"[" before the first of them, and "]" after the last'
_LONGEST_WRITTEN: Final = 80
_ONE_QUOTE: Final = "a quote is missing on this line; write each value between two"
# Keys that hold a name, which may well be "on".
_NAMES: Final = frozenset({"assign", "domain", "group", "interface", "network", "proxy"})

# Keys that hold an array, or one value without brackets.
_ARRAYS: Final = frozenset({"addresses", "behind", "gates", "libvirt", "listen", "ports", "sources", "uplinks"})
# Those of them that are never written without brackets.
_ALWAYS_ARRAYS: Final = frozenset({"gates", "ports"})
# Keys whose values have no quotes.
_PLAIN_KEYS: Final = frozenset({"ip_forward", "keep_guests_online", "label", "localhost", "log", "masquerade"})
# Values without an array around them: with commas between, or else anything where it is clear where each one ends.
_QUOTED: Final = r"\"[^\"\\\n]*\"|'[^'\n]*'"
_VALUE: Final = re.compile(rf"{_QUOTED}|{_BARE.pattern}")
_CLEAR: Final = re.compile(rf"{_QUOTED}|[0-9][^\s,;&+|\[\]{{}}\"'#=]*")
_END_OF_LIST: Final = r"[ \t]*+(?:,[ \t]*+)?(?P<end>\]?)[ \t]*+(?:#.*)?(?=\n|\Z)"
_LISTS: Final = tuple(
    (value, re.compile(rf"[ \t]*(?P<list>(?:{value.pattern})(?:{between}(?:{value.pattern}))*){_END_OF_LIST}"))
    for value, between in (
        (_VALUE, r"[ \t]*+,[ \t]*+(?:(?:#.*)?\n\s*+)?"),
        (_CLEAR, r"[ \t]*+(?:(?<=[ \t])(?:and[ \t]++)?|[;&+|][ \t]*+)"),
    )
)


def syntax_problems(file: Path, text: str, said: str) -> list[Problem]:
    """Say where a text stops being TOML, and what to write; `said` is the parser's own message."""
    position = _POSITION.search(said)
    if position is None:
        # A number longer than Python reads comes without a position.
        return [Problem(file, _line_of_longest(text), "has a number with too many digits; write a shorter one")]
    text = text.replace("\r\n", "\n")
    stop = spot(text, _offset(text, position))
    reason = said[: position.start()]
    found = _inline(stop) or _headers(text) if reason.startswith("Cannot") else []
    if not found:
        found = [next(_explanations(stop, reason))]
    return [Problem(file, stop.line_of(offset), f"is not valid TOML: {what}") for offset, what in found]


def _offset(text: str, position: re.Match[str]) -> int:
    if position["line"] is None:
        return len(text)
    begin = 0
    for _ in range(int(position["line"]) - 1):
        begin = text.index("\n", begin) + 1
    return min(begin + int(position["column"]) - 1, len(text))


def _explanations(stop: Spot, reason: str) -> Iterator[Finding]:
    """Give what applies, the surest first."""
    for explain in _EXPLAIN:
        found = explain(stop, reason)
        if found is not None:
            yield found
    yield _generic(stop, reason)


def _inline(stop: Spot) -> list[Finding]:
    """Report a header whose table or entries stand before it already, as one value."""
    line = re.match(r"[ \t]*\[{1,2}[ \t]*([A-Za-z0-9_-]+)", stop.line_from(stop.line_start))
    first = _HEADER.search(stop.text)
    if line is None or first is None:
        return []
    name = line[1]
    value = re.search(rf"^[ \t]*[\"']?{name}[\"']?[ \t]*=", stop.text[: first.start()], re.MULTILINE)
    if value is None:
        return []
    what = f"{name} has a value already; write what that says under {header(name)} too, and remove {name} = here"
    return [(value.end() - 1, what)]


def _headers(text: str) -> list[Finding]:
    """Report tables that may stand once and stand twice, and entries in single brackets."""
    found: list[Finding] = []
    first: dict[str, int] = {}
    for match in _HEADER.finditer(text):
        brackets, name = match.groups()
        if brackets == "[" and name in ARRAYS:
            found.append((match.start(2), f"[{name}] in single brackets may stand once only; write [[{name}]]"))
        elif brackets == "[" and name in first:
            what = f"[{name}] is on line {first[name]} already; move its keys there, and remove this line"
            found.append((match.start(2), what))
        first.setdefault(name, text.count("\n", 0, match.start(2)) + 1)
    return found


def _second_key(stop: Spot, reason: str) -> Finding | None:
    if not reason.startswith("Cannot") or not stop.key or stop.assigned is None:
        return None
    begin = stop.text.rfind("\n", 0, stop.assigned) + 1
    name = quote(stop.key)
    return begin, f"{name} is written twice in one table; remove one of the two"


def _typography(stop: Spot, _reason: str) -> Finding | None:
    rest = stop.rest
    if rest[:1] and rest[0] in _TYPOGRAPHIC:
        return stop.offset, f"{rest[0]} is a typographic quote; write {printed(rest.translate(_PLAIN).strip())}"
    if rest[:1] and not rest[0].isascii() and (rest[0].isspace() or not rest[0].isprintable()):
        return stop.offset, f"{quote(rest[0])} looks like a blank but is not one; write a blank in its place"
    return None


def _missing_bracket(stop: Spot, _reason: str) -> Finding | None:
    """An array that goes on into the next statement, or to the end."""
    earlier = [token for token in stop.words if token.start < stop.line_start]
    opened = [token for token in stop.opened if token.start < stop.line_start and token.text == "["]
    if opened and earlier and _STATEMENT.match(stop.line_from(stop.line_start)):
        return _unfinished(earlier)
    is_over = not stop.text[stop.offset :].strip()
    if is_over and stop.opened and stop.opened[-1].text == "[" and stop.words and stop.unclosed is None:
        return _unfinished(stop.words)
    return None


def _unfinished(words: list[Token]) -> Finding:
    *_, last = words
    if last.text == ",":
        return last.start, 'the array that ends here has no "]"; write "]" in place of the last comma'
    if last.text == "[":
        return last.start, 'the array that begins here has no "]"; write "]" after its last value'
    return last.start, f'the array that ends here has no "]"; write "]" after {printed(last.text)}'


def _missing_quote(stop: Spot, reason: str) -> Finding | None:
    if stop.unclosed is None:
        return None
    if not reason.startswith(_NO_END):
        return stop.offset, _within_text(stop, reason)
    mark = stop.text[stop.unclosed]
    begun = re.sub(r"[ \t]+#.*", "", stop.line_from(stop.unclosed + 1)).strip()
    if stop.text.startswith(3 * mark, stop.unclosed):
        return stop.unclosed, f"a text begins here and has no end; write {3 * mark} after its last line"
    if stop.opened and stop.opened[-1].text == "[" and (match := _BEGUN.fullmatch(begun)):
        return stop.unclosed, _quote_in_array(mark, match)
    if stop.opened or not begun or mark in begun or "\\" in begun:
        return stop.unclosed, _ONE_QUOTE
    value = begun.removesuffix(_OTHER_QUOTE[mark]).rstrip() or begun
    return stop.unclosed, f"the second quote is missing; write {printed(mark + value + mark)}"


def _quote_in_array(mark: str, begun: re.Match[str]) -> str:
    value, end = begun["value"].strip(), begun["end"]
    if value:
        return f"the second quote is missing; write {printed(mark + value + mark + end)}"
    return f"a quote with no value stands before {quote(end)}; remove the quote" if end else _ONE_QUOTE


def _within_text(stop: Spot, reason: str) -> str:
    if reason.startswith(("Unescaped", "Invalid hex", "Escaped")):
        return 'a single "\\" stands in this text; write two of them for each'
    return f"{quote(stop.rest[:1])} stands in this text, which may not hold it; remove it"


def _in_array(stop: Spot, _reason: str) -> Finding | None:
    if not stop.opened or stop.opened[-1].text != "[" or not stop.words:
        return None
    last, rest = stop.words[-1], stop.text[stop.offset :].lstrip()
    if rest[:1] in {"}", ")"} and last.text != ",":
        return stop.offset, f'an array has square brackets; write "]" in place of {quote(rest[0])}'
    is_glued = last.kind == "word" and last.end >= stop.offset - 1 and not stop.text[stop.offset - 1].isspace()
    if last.text in {",", "["} or is_glued:
        return _bare_element(stop, last.start if is_glued else stop.offset)
    return _after_element(stop, last, rest) if last.is_value else None


def _after_element(stop: Spot, last: Token, rest: str) -> Finding | None:
    if said := _between(last, rest):
        return stop.offset, said
    if _lacks_quote(stop, last):
        return stop.offset, _ONE_QUOTE
    if element := _element(rest):
        said = f"{in_quotes(last.text)}, {in_quotes(element)}"
        return last.start, f"a comma is missing after {printed(last.text)}; write {printed(said)}"
    return None


def _between(last: Token, rest: str) -> str | None:
    """Say what is right in place of a sign between two elements, some of which make one port string of them."""
    match = re.match(r"(?P<sign>->|=>|[;:=+&|-])[ \t]*+(?P<next>\"[^\"\\\n]*\"|'[^'\n]*'|[0-9]+|)", rest)
    if match is None:
        return None
    if match["sign"] in {";", "+", "&", "|"}:
        return f'elements are separated by commas; write "," in place of {quote(match["sign"])}'
    if not match["next"]:
        return None
    parts = (last.text.strip("\"'"), match["next"].strip("\"'"))
    return f"a port string has its parts in one; write {quote(('-' if match['sign'] == '-' else ':').join(parts))}"


def _lacks_quote(stop: Spot, last: Token) -> bool:
    """Whether the quote that seems to end the last value begins the next one."""
    ends_with_comma = last.kind == "string" and last.text[1:-1].rstrip().endswith(",")
    return ends_with_comma or spot(stop.text, stop.offset + len(stop.rest)).unclosed is not None


def _bare_element(stop: Spot, near: int) -> Finding | None:
    """An element without quotes, of which the parser may have read the beginning as a number."""
    if stop.rest[:1] == ",":
        return stop.offset, "there are two commas, or one with nothing before it; remove this one"
    begin = near
    while begin > stop.line_start and _BARE.match(stop.text[begin - 1]):
        begin -= 1
    word = _BARE.match(stop.text, begin)
    if word is None:
        return None
    mark = stop.text[word.end() : word.end() + 1]
    if mark in {'"', "'"}:
        return begin, f"the first quote is missing; write {printed(mark + word.group() + mark)}"
    return begin, _needs_quotes(word.group(), stop.key, in_array=True)


def _other_brackets(stop: Spot, _reason: str) -> Finding | None:
    """An array in parentheses or braces."""
    if stop.assigned is None:
        return None
    raw = stop.line_from(stop.assigned)
    mark = raw.lstrip()[:1]
    if mark not in _BRACKETS or (mark == "{" and "=" in raw):
        return None
    return stop.assigned, f'an array has square brackets; write "[" for "{mark}", and "]" for "{_BRACKETS[mark]}"'


def _after_equals(stop: Spot, _reason: str) -> Finding | None:
    """A value outside of arrays: none at all, one without quotes, or one with more after it."""
    if stop.opened or stop.assigned is None:
        return None
    raw = stop.line_from(stop.assigned)
    if more := re.match(r"[=>]+", raw):
        what = f"{quote('=' + more.group())} stands after {printed(stop.key)}"
        return stop.assigned, f'{what}; write "=" in its place'
    value, found = raw.split("#")[0].strip(), stop.words[-1]
    if not value.strip("])}>;,"):
        return stop.assigned - 1, emptied(stop, value, _ARRAYS)
    if found.kind == "string" or found.text in {"]", "}"}:
        return stop.offset, _surplus(stop)
    if "=" in value or value[0] in "\"'[{(" or "\\" in value:
        return None
    return stop.assigned, _needs_quotes(value.strip("\"'"), stop.key, in_array=False)


def _without_brackets(stop: Spot, _reason: str) -> Finding | None:
    """Several values, or one and a bracket, which have to be an array."""
    if stop.opened or stop.assigned is None:
        return None
    found = ((value, pattern.match(stop.text, stop.assigned)) for value, pattern in _LISTS)
    value, match = next(((value, match) for value, match in found if match), (_VALUE, None))
    if match is None:
        return None
    what = _as_list(stop.key, match, value.findall(match["list"]))
    return None if what is None else (stop.assigned, what)


def _as_list(key: str, match: re.Match[str], values: list[str]) -> str | None:
    first, *others = values
    if key in _ARRAYS and (others or match["end"]):
        what = '"[" is missing' if match["end"] else "several values are an array, in brackets"
        right = f"[{', '.join(map(in_quotes, (first, *others)))}]"
        is_short = len(right) <= _LONGEST_WRITTEN and "\n" not in match["list"]
        return f"{what}; write {right if is_short else _AROUND}"
    if others and ("," in match["list"] or first[0] in _OTHER_QUOTE):
        right = first if key in _PLAIN_KEYS else in_quotes(first)
        return f"{quote(key)} has one value only; write {printed(right)}"
    return None


def _surplus(stop: Spot) -> str:
    rest = stop.rest.split("#")[0].strip()
    if rest in {"]", "}", ")", ",", ";"}:
        return f"{quote(rest)} is one too many here; remove it"
    if stop.key in _ARRAYS and rest[0] == "," and "=" not in rest:
        return f"several values are an array, in brackets; write {_AROUND}"
    if mark := comment_mark(rest):
        return mark
    if stop.key == "ports" and re.fullmatch(r"[/ \t]*(?i:tcp|udp|sctp)", rest):
        return f'{printed(rest)} stands after the value; write the protocol within the quotes, as in "53/udp"'
    as_key = "" if re.match(r"[,;]?[ \t]*[A-Za-z_]+[ \t]*=", rest) else ", as KEY = VALUE"
    return f"{printed(rest.lstrip(',; '))} stands after the value; move it to a line of its own{as_key}"


def _generic(stop: Spot, reason: str) -> Finding:
    offset = stop.offset
    if not stop.text[offset:].strip():
        offset = len(stop.text.rstrip())
        return (
            offset,
            f'{reason} at the end of the file; write "#" before the last line, and what it means as KEY = VALUE',
        )
    column = offset - stop.line_start + 1
    remedy = (
        "write each value between two quotes, with commas between them" if stop.opened else "write KEY = VALUE there"
    )
    return offset, f"{reason} at column {column}; {remedy}"


_EXPLAIN: Final[tuple[Callable[[Spot, str], Finding | None], ...]] = (
    other_language,
    _second_key,
    _missing_bracket,
    _missing_quote,
    _typography,
    _other_brackets,
    _in_array,
    _without_brackets,
    _after_equals,
    statement,
)


def _element(rest: str) -> str:
    """Give the value with which what follows begins, or nothing."""
    match = re.match(r"\"[^\"\\\n]*\"|'[^'\n]*'|" + _BARE.pattern, rest)
    return "" if match is None else match.group()


def _needs_quotes(word: str, key: str, *, in_array: bool) -> str:
    flag = None if key in _NAMES else flag_meant(word)
    if flag is not None:
        return f"{quote(word)} is no value; write {str(flag).lower()}"
    if key in _ALWAYS_ARRAYS and not in_array:
        return f"{printed(word)} lacks its brackets and quotes; write [{quote(word)}]"
    return f"{printed(word)} lacks its quotes; write {quote(word)}"


def _line_of_longest(text: str) -> int:
    lines = text.split("\n")
    longest = max(range(len(lines)), key=lambda index: len(lines[index]))
    return longest + 1
