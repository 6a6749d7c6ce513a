import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwdaemon.core.text import is_interface_name, label, shown


@given(st.text())
def test_a_label_holds_nothing_that_a_rule_language_could_read(name: str) -> None:
    assert len(label(name)) <= 40
    assert all(letter in "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_." for letter in label(name))


@given(st.text())
def test_a_shown_name_is_one_short_printable_line(name: str) -> None:
    assert len(shown(name)) <= 80
    assert shown(name).isprintable()


@pytest.mark.parametrize(
    ("name", "expected"),
    [("web 1", "web 1"), ("Björn's", "Björn's"), ("a\nb", r"a\nb"), ("\x1b[31m", r"\x1b[31m"), ("\u202e", r"\u202e")],
)
def test_what_cannot_be_printed_is_escaped(name: str, expected: str) -> None:
    assert shown(name) == expected


@pytest.mark.parametrize("name", ["eth0", "virbr0-nic", "eth0.100", "br_lan", "0", "enx0123456789ab"])
def test_usual_interfaces_have_plain_names(name: str) -> None:
    assert is_interface_name(name)


@pytest.mark.parametrize(
    "name", ["", "eth+", "eth*", "!eth0", "-eth0", ".", "e h", "eth0\n", 'e"', "enx0123456789abc", "ü"]
)
def test_no_other_interface_has(name: str) -> None:
    assert not is_interface_name(name)
