"""Rules that turn packets back before they come to a DNAT, or ask whether a way leads back to the client."""

from collections.abc import Sequence

import pytest

from fwdaemon.importing.iptables_save import parse
from tests.unit.imports import FILE, forwards, left_out, warnings
from tests.unit.saved_rules import SQL, SSH, SSH_IS, found, saved

BAD = "-m set --match-set bad src"
OFFICE = "-s 198.51.100.0/24"


def to_chain(name: str) -> str:
    return SQL.replace("PREROUTING", name)


@pytest.mark.parametrize(
    ("rules", "line"),
    [
        ([f"-A PREROUTING {BAD} -j RETURN", SQL], 3),
        ([f"-A PREROUTING {BAD} -g out", SQL, "-A out -p udp -j RETURN"], 3),
        (["-A PREROUTING -j in", f"-A in {BAD} -j RETURN", to_chain("in")], 4),
        (["-A PREROUTING -j in", f"-A in {BAD} -j RETURN", "-A in -j deep", to_chain("deep")], 4),
        (["-A PREROUTING -p udp -j RETURN", f"-A PREROUTING {BAD} -j RETURN", SQL, "-A PREROUTING -j RETURN"], 4),
    ],
)
def test_what_may_have_turned_back_is_a_comment_with_the_line_that_turned_it(rules: Sequence[str], line: int) -> None:
    findings = found(rules)
    assert forwards(findings) == []
    (reason,) = left_out(findings)
    assert reason.partition(": ")[2].startswith(f'line {line}, "-A ')
    assert reason.endswith(", stopped it")


@pytest.mark.parametrize(
    "rules",
    [
        [f"-A PREROUTING {OFFICE} -j RETURN", SQL],
        [f"-A PREROUTING {OFFICE} -g out", SQL, "-A out -j RETURN"],
        ["-A PREROUTING -j in", f"-A in {OFFICE} -j RETURN", to_chain("in")],
    ],
)
def test_sources_that_turned_back_are_remarked_with_the_line_that_turned_them(rules: Sequence[str]) -> None:
    findings = found(rules)
    assert len(forwards(findings)) == 1
    (turn,) = (number for number, rule in enumerate(rules, 3) if OFFICE in rule)
    assert [remark.text for remark in findings.remarks if "left to it" in remark.text] == [
        f'5432: only what line {turn}, "{rules[turn - 3]}", left to it'
    ]


@pytest.mark.parametrize("turn", ["-j RETURN", "-g out"])
def test_a_rule_that_all_turned_back_from_is_told_with_the_line_that_turned_it(turn: str) -> None:
    rule = f"-A PREROUTING -p tcp {turn}"
    (warning,) = warnings(found([rule, SQL, "-A out -p udp -j ACCEPT"]))
    assert warning.startswith(f'4: "{SQL[:40]}')
    assert warning.endswith(f'left out: line 3, "{rule}", took all of it before')


def test_an_address_that_turned_back_is_named_with_its_line() -> None:
    limited = "-d 203.0.113.9/32 -p tcp -m tcp --dport 5432 -m connlimit --connlimit-above 3"
    findings = found([f"-A PREROUTING {limited} -j RETURN", SQL.replace(" -d 203.0.113.1/32", "")])
    assert forwards(findings) == []
    (reason,) = left_out(findings)
    assert ': line 3, "-A PREROUTING -d 203.0.113.9/32' in reason
    assert reason.endswith(
        "what is left cannot be said: it is for every address but 203.0.113.9; write a forward for each of the others"
        " that is in use"
    )


# --- whether a way leads back to the client ---------------------------------------------------------------------------

PASSING = "-A FORWARD -j ACCEPT"
# The chain of NixOS for what comes from where no way leads back to.
NIXOS = (
    "*mangle",
    ":PREROUTING ACCEPT [0:0]",
    ":nixos-fw-rpfilter - [0:0]",
    "-A PREROUTING -j nixos-fw-rpfilter",
    "-A nixos-fw-rpfilter -m rpfilter --validmark -j RETURN",
    "-A nixos-fw-rpfilter -s 0.0.0.0/32 -d 255.255.255.255/32 -p udp -m udp --sport 68 --dport 67 -j RETURN",
    "-A nixos-fw-rpfilter -j DROP",
    "COMMIT",
)


@pytest.mark.parametrize("asked", ["", " --loose", " --validmark", " --accept-local", " --loose --validmark"])
@pytest.mark.parametrize(
    "rules",
    [
        ["-A PREROUTING -m rpfilter{} -j RETURN", "-A PREROUTING -j DROP"],
        ["-A PREROUTING -m rpfilter{} --invert -j DROP"],
        ["-A PREROUTING -p tcp -m rpfilter{} --invert -m tcp --dport 22 -j DROP"],
    ],
)
@pytest.mark.parametrize("table", ["raw", "mangle"])
def test_a_source_to_which_no_way_leads_back_narrows_nothing(rules: Sequence[str], asked: str, table: str) -> None:
    more = [f"*{table}", *(rule.format(asked) for rule in rules), "COMMIT"]
    findings = parse(FILE, saved([SSH], [PASSING], "DROP", more))
    assert forwards(findings) == [f"{SSH_IS} at 3"]
    assert warnings(findings) == []


def test_a_host_of_nixos_is_imported() -> None:
    assert forwards(parse(FILE, saved([SSH], [PASSING], "DROP", NIXOS))) == [f"{SSH_IS} at 3"]


@pytest.mark.parametrize(
    "rule",
    [
        "-A PREROUTING -m rpfilter -j DROP",
        "-A PREROUTING -m rpfilter --loose -j DROP",
        "-A PREROUTING -m rpfilter --mystery -j DROP",
        "-A PREROUTING -m mystery --invert -j DROP",
        "-A PREROUTING -m mystery --loose -j DROP",
        "-A PREROUTING -m rpfilter -m mystery --invert -j DROP",
        "-A PREROUTING --invert -j DROP",
    ],
)
def test_what_asks_for_more_than_a_way_back_may_refuse_all(rule: str) -> None:
    findings = parse(FILE, saved([SSH], [PASSING], "DROP", ["*raw", rule, "COMMIT"]))
    assert forwards(findings) == []
    assert f'"{rule}", stopped it' in left_out(findings)[0]
