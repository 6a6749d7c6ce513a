"""What is reported of whole files: those that are not TOML, strange tables, drop-ins, several files at once."""

import pytest

from tests.unit.test_config_support import forward, problems_of


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("a = ", ['1: is not valid TOML: "a" has no value; write one after the "=", or remove the line']),
        ("\na = ?\n", ['2: is not valid TOML: ? lacks its quotes; write "?"']),
        ("\ufeff", ["1: starts with a byte order mark; save the file as UTF-8 without one"]),
        (b"\n\xff", ["2: is not UTF-8 text; save the file as UTF-8"]),
        ("\nx = " + "9" * 5000, ["2: has a number with too many digits; write a shorter one"]),
        ("x = " + "[" * 5000, ["1: nests brackets too deeply; write plain arrays of strings"]),
        ("[foward]", ['1: unknown table "foward"; did you mean "forward"?']),
        ("domain = 1", ["1: domain is in no table; write [[forward]] on a line above"]),
        ("[forward]", ["1: forward: must be entries, not a table; write [[forward]] in double brackets"]),
        ("[nat]", ["1: nat: must be entries, not a table; write [[nat]] in double brackets"]),
        ("route = 1", ["1: route: must be entries, not 1; write [[route]] in double brackets"]),
        ("[[rout]]", ['1: unknown table "rout"; did you mean "route"?']),
        ("forward = [1]", ["1: forward 1: must be a table, not 1; write its keys on lines of their own"]),
        ("daemon = 1", ["1: daemon: must be a table, not 1; write its keys on lines of their own"]),
        (
            "[[metrics]]\n[[control]]",
            [
                "1: metrics: must be a table, not an array; write [metrics] in single brackets, once",
                "2: control: must be a table, not an array; write [control] in single brackets, once",
            ],
        ),
    ],
)
def test_documents_refused(text: str | bytes, problems: list[str]) -> None:
    assert problems_of(text) == [f"portfwd.toml:{problem}" for problem in problems]


def test_everything_at_once_in_the_order_of_file_and_line() -> None:
    broken = 'x = "'
    assert [text.split(": ")[0] for text in problems_of(forward("x = 1"), "[daemon]\n[y]", broken, "[[x]]")] == [
        "portfwd.toml:4",
        "a.toml:1",
        "a.toml:2",
        "b.toml:1",
        "c.toml:1",
    ]


def test_a_drop_in_has_entries_only() -> None:
    assert problems_of("", forward() + "[daemon]\n[control]\n[metrics]") == [
        "a.toml:5: [daemon] does not belong in a drop-in file; move its keys to the main file",
        "a.toml:6: [control] does not belong in a drop-in file; move its keys to the main file",
        "a.toml:7: [metrics] does not belong in a drop-in file; move its keys to the main file",
    ]
