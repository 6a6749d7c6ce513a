"""Rules of others with any text in their comments: no reader takes a comment for a rule, or for the end of one."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from fwdaemon.core.text import rule_lines, unquoted
from fwdaemon.core.types import Family
from fwdaemon.importing import iptables_save
from fwdaemon.rulesets import nat_chains, xt_listing
from fwdaemon.rulesets.packet import System

_MATCHES = "-d 198.51.100.1/32 -p tcp -m tcp --dport"
_TARGET = "-j DNAT --to-destination 192.168.122.50:80"
_PIECES = (
    "\n",
    '"',
    "\\",
    "'",
    "\n-A PREROUTING -j DROP",
    "\nCOMMIT\n*nat\n:X - [0:0]\n",
    "\u2028",
    "\x85",
    "a b",
    "#",
    "KVMPF_PRE",
    "-sfoo",
    "--to=x",
)


def comments() -> st.SearchStrategy[str]:
    return st.lists(st.one_of(st.sampled_from(_PIECES), st.characters(codec="utf-8")), max_size=6).map("".join)


def saved(texts: list[str]) -> str:
    """What iptables prints for rules with these comments: it escapes quotes and backslashes, and nothing else."""
    rules = [f"-A PREROUTING {_MATCHES} {number} {_comment(text)}{_TARGET}" for number, text in enumerate(texts, 1)]
    return "\n".join(["# Generated", "*nat", ":PREROUTING ACCEPT [0:0]", *rules, "COMMIT", "# Completed's", ""])


def _comment(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("'", "\\'")
    return f'-m comment --comment "{escaped}" '


@given(st.lists(comments(), max_size=5))
def test_a_rule_is_a_line_whatever_its_comment_says(texts: list[str]) -> None:
    lines = list(rule_lines(saved(texts)))
    assert "\n".join(lines) == saved(texts)
    assert len(lines) == len(texts) + 6
    assert len([line for line in lines if line.startswith("-A ")]) == len(texts)


@given(st.lists(comments(), max_size=5))
def test_every_reader_finds_the_rules_and_no_more(texts: list[str]) -> None:
    save = saved(texts)
    ports = [str(number) for number in range(1, len(texts) + 1)]
    imported = iptables_save.parse(Path("old"), save)
    assert [str(forward.host) for forward in imported.forwards] == ports
    (chain,) = xt_listing.base_chains(save, System.LEGACY, Family.IPV4)
    assert len(chain.chains.get("PREROUTING", ())) == len(texts)
    steps = nat_chains.read_iptables(save, System.LEGACY, Family.IPV4)
    assert len(steps.get("PREROUTING", ())) == len(texts)


def test_quotes_that_never_close_hold_no_later_line_back() -> None:
    assert list(rule_lines('*nat\n-A X --comment "open\nCOMMIT')) == ["*nat", '-A X --comment "open', "COMMIT"]


def test_a_quote_in_a_remark_of_somebodys_is_no_quote() -> None:
    assert list(rule_lines("# Bob's \"file\n-A X\n")) == ["# Bob's \"file", "-A X", ""]


def test_what_is_in_quotes_is_nobodys_word_but_its_writers() -> None:
    rule = '-A FORWARD -m comment --comment "a \\" --comment kvm-portfwd b" -j ACCEPT'
    assert unquoted(rule) == '-A FORWARD -m comment --comment "" -j ACCEPT'
