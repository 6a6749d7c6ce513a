"""Lines of values in TOML texts."""

import json

import pytest
import tomli
from hypothesis import given
from hypothesis import strategies as st

from fwdaemon.config.lines import MOST_ELEMENTS, KeyPath, toml_lines

TEXT = '''# [[forward]] in a comment
title = "a # [[forward]] \\" = {" # comment
long = """
[[forward]]
""" # after""\""
raw = \'\'\'
x = ['' ]\'\'\'

[daemon]
"quoted key" = 1
'lite.ral' = 1.5
when = 1979-05-27 07:32:00

[[forward]]
domain = "a"
ports = [ # [
  "80", # "]"
  """81""",

  ["x", {y = [
    1, 2]}],
]
nested.deep."er\\u0041" = true

[[ forward ]]
point = { x = 1, y.z = [1,
 2] }
[forward.sub]
key = 1
[[forward.list]]
[[forward.list]]
key = 2
'''


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("title",), 2),
        (("long",), 3),
        (("raw",), 6),
        (("daemon",), 9),
        (("daemon", "quoted key"), 10),
        (("daemon", "lite.ral"), 11),
        (("daemon", "when"), 12),
        (("forward", 0), 14),
        (("forward", 0, "domain"), 15),
        (("forward", 0, "ports"), 16),
        (("forward", 0, "ports", 0), 17),
        (("forward", 0, "ports", 1), 18),
        (("forward", 0, "ports", 2), 20),
        (("forward", 0, "ports", 2, 1, "y", 1), 21),
        (("forward", 0, "nested", "deep", "erA"), 23),
        (("forward", 1), 25),
        (("forward", 1, "point", "y", "z", 1), 27),
        (("forward", 1, "sub", "key"), 29),
        (("forward", 1, "list", 0), 30),
        (("forward", 1, "list", 1, "key"), 32),
        (("forward", 1, "list", 1, "missing", 3), 31),
        (("nowhere",), 1),
    ],
)
def test_finds_the_line(path: KeyPath, line: int) -> None:
    tomli.loads(TEXT)
    assert toml_lines(TEXT).line_of(path) == line


def test_inline_array_of_entries() -> None:
    index = toml_lines('forward = [\r\n {domain="a", ports=["80"]},\r\n {domain="b",\r\n ports=["81"]} ]')
    assert [index.line_of(("forward", 1, key)) for key in ("domain", "ports")] == [3, 4]
    assert index.line_of(("forward", 0, "ports", 0)) == 2


KEYS = st.text(min_size=1, max_size=6)
LEAVES = st.one_of(st.integers(-9, 9), st.booleans(), st.text(max_size=8), st.floats(0, 1).map(lambda x: round(x, 3)))
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)


def test_elements_of_an_array_that_is_refused_as_a_whole_are_not_kept() -> None:
    for between, number in ((",", 1), (",\n", MOST_ELEMENTS)):
        index = toml_lines(f"ports = [{between.join(['80'] * 2 * MOST_ELEMENTS)}]\nnext = 1\n")
        assert len(index.bare) == MOST_ELEMENTS + 1
        assert index.line_of(("ports", MOST_ELEMENTS - 1)) == number
        assert index.line_of(("ports", MOST_ELEMENTS)) == 1
        assert index.line_of(("next",)) == (2 if number == 1 else 2 * MOST_ELEMENTS + 1)


def basic(text: str) -> str:
    """Write a basic string."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


class Writer:
    """Writes TOML and notes on which line each value begins."""

    def __init__(self, data: st.DataObject) -> None:
        self.draw = data.draw
        self.text = ""
        self.lines: dict[KeyPath, int] = {}

    def put(self, text: str) -> None:
        self.text += text

    def note(self, path: KeyPath) -> None:
        self.lines[path] = self.text.count("\n") + 1

    def gap(self) -> None:
        self.put(self.draw(st.sampled_from(["", " ", "\n", "  # ] = [[\n\n", "\t"])))

    def key(self, key: str) -> None:
        self.put(basic(key))

    def value(self, value: object, path: KeyPath) -> None:
        match value:
            case list():
                self.put("[")
                for index, item in enumerate(value):
                    self.gap()
                    self.note((*path, index))
                    self.value(item, (*path, index))
                    self.gap()
                    self.put(",")
                self.gap()
                self.put("]")
            case dict():
                self.put("{")
                for number, (key, item) in enumerate(value.items()):
                    self.put("," if number else "")
                    self.note((*path, key))
                    self.key(key)
                    self.put(" = ")
                    self.value(item, (*path, key))
                self.put("}")
            case str() if self.draw(st.booleans()):
                self.put(f'"""\n{basic(value)[1:-1]}\n"""')
            case str():
                self.put(basic(value))
            case _:
                self.put(json.dumps(value))

    def table(self, table: dict[str, object], path: KeyPath) -> None:
        for key, item in table.items():
            self.note((*path, key))
            self.key(key)
            self.put("=")
            self.value(item, (*path, key))
            self.put(" # x = [\n")


@given(st.data(), st.lists(st.dictionaries(KEYS, VALUES, max_size=3), max_size=3))
def test_finds_every_line_of_a_written_document(data: st.DataObject, entries: list[dict[str, object]]) -> None:
    writer = Writer(data)
    for index, entry in enumerate(entries):
        writer.put(data.draw(st.sampled_from(["", "\n", "# [\n"])))
        writer.note(("forward", index))
        writer.put("[[forward]]\n")
        writer.table(entry, ("forward", index))
    tomli.loads(writer.text)
    found = toml_lines(writer.text)
    assert {path: found.line_of(path) for path in writer.lines} == writer.lines
