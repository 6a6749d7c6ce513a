"""Rules of iptables are read however they are written, and what becomes of each is reported."""

from collections.abc import Sequence

import pytest

from fwdaemon.importing.findings import BrokenFileError
from fwdaemon.importing.iptables_save import parse
from tests.unit.imports import FILE, forwards, warnings
from tests.unit.saved_rules import EVERYWHERE, SQL, SSH, SSH_IS, found, saved

# --- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rule",
    [
        "-A PREROUTING --destination 203.0.113.1 --protocol tcp --destination-port 22 --jump DNAT --to-dest 10.0.0.9",
        "-A PREROUTING --dst 203.0.113.1 --proto tcp --match tcp --dport 22 --jump DNAT --to 10.0.0.9",
        "--append PREROUTING -d 203.0.113.1 -p TCP --dport=22 -j DNAT --to-dest 10.0.0.9",
        "-A\tPREROUTING  -d\t203.0.113.1  -p  tcp   --dport 22\t-j DNAT   --to-destination\t10.0.0.9",
        "-A PREROUTING -j DNAT --to 10.0.0.9 -p 6 -d203.0.113.1 -m multiport --destination-ports 22",
        "-A PREROUTING -d 203.0.113.1/255.255.255.255 -ptcp --dport ssh -j DNAT --to-destination 10.0.0.9",
        "[12:720] -A PREROUTING -c 12 720 -d 203.0.113.1 -p tcp --syn --dport 22 -j DNAT --to-destination 10.0.0.9",
        "-I PREROUTING 1 -d 203.0.113.1 -p tcp --dport 22 -j DNAT --to-destination 10.0.0.9 --persistent",
    ],
)
def test_words_count_however_they_are_written(rule: str) -> None:
    findings = parse(FILE, saved([rule]), lambda name, protocol: {("ssh", "tcp"): 22}.get((name, protocol)))
    assert forwards(findings) == [f"{SSH_IS} at 3"]
    assert warnings(findings) == []


def test_a_rule_that_is_inserted_comes_first() -> None:
    findings = found([SSH, "-I PREROUTING -p tcp --dport 22 -j ACCEPT"])
    assert forwards(findings) == []
    assert warnings(findings)[0].startswith(f'3: "{SSH[:40]}')


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("-A PREROUTING -p tcp --dport nosuch -j DNAT --to 10.0.0.9", '"--dport nosuch" is not understood'),
        ("-A PREROUTING -p tcp --dport 22 --whatever -j DNAT --to 10.0.0.9", '"--whatever" is not understood'),
        ("-A PREROUTING -p tcp --sport 1 --dport 22 -j DNAT --to 10.0.0.9", '"--sport 1" is not understood'),
        ("-A PREROUTING -s office.example -p tcp --dport 22 -j DNAT --to 10.0.0.9", "office.example"),
        ("-D PREROUTING 1", "is no line of iptables-save"),
        ("PREROUTING -j DNAT", "is no line of iptables-save"),
    ],
)
def test_what_is_not_read_is_told_with_its_line(line: str, said: str) -> None:
    findings = found([line])
    assert forwards(findings) == []
    assert any(warning.startswith("3: ") and said in warning for warning in warnings(findings))


def test_a_command_that_is_not_known_may_have_done_anything() -> None:
    findings = found([SSH, "-D PREROUTING 1"])
    assert forwards(findings) == []


@pytest.mark.parametrize("table", ["nat", "filter"])
@pytest.mark.parametrize(
    "says", ["is incompatible, use 'nft' tool.", "contains incompatible base-chains, use 'nft' tool"]
)
def test_a_table_that_iptables_save_cannot_show_is_an_error(table: str, says: str) -> None:
    with pytest.raises(BrokenFileError, match=rf"^FILE:9: there is more in the table {table} than iptables-save shows"):
        parse(FILE, saved([SSH], ["-A FORWARD -j ACCEPT"]) + f"# Table `{table}' {says}\n")


# --- what is said -----------------------------------------------------------------------------------------------------

OUT = "-A OUTPUT -d 203.0.113.1/32 -p tcp --dport 22 -j DNAT --to-destination 10.0.0.9"


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ([SSH, OUT], "the forward of line 3 answers this host itself too"),
        (
            [EVERYWHERE.replace("192.168.122.10", "10.0.0.9"), OUT],
            "line 3 answers this host itself on its own addresses only",
        ),
        ([SSH.replace("-d 203", "-i eth0 -d 203"), OUT], "no forward from here takes those"),
        ([SSH.replace("-d 203", "-s 198.51.100.0/24 -d 203"), OUT], "no forward from here takes those"),
        ([SSH.replace("10.0.0.9", "10.0.0.8"), OUT], "no forward from here takes those"),
        ([SSH, OUT.replace("203.0.113.1/32", "203.0.113.2/32")], "no forward from here takes those"),
        ([SSH, OUT.replace("203.0.113.1", "127.0.0.1")], "no forward from here takes those"),
        ([SQL, OUT], "no forward from here takes those"),
        (
            [EVERYWHERE.replace("192.168.122.10", "10.0.0.9"), OUT.replace("203.0.113.1", "127.0.0.1")],
            "the forward of line 3 answers there with `localhost = true` in [daemon]",
        ),
    ],
)
def test_what_becomes_of_a_rule_for_the_host_itself(rules: Sequence[str], said: str) -> None:
    (warning,) = [text for text in warnings(found(rules)) if text.startswith("4: ")]
    assert warning.endswith(said)


_OWN = "the forward of line 3 answers this host itself on its own addresses only"
_WITH_LOOPBACK = f"{_OWN}; on 127.0.0.1 with `localhost = true` in [daemon]"


@pytest.mark.parametrize(
    ("asks", "said"),
    [
        ("-o lo", _WITH_LOOPBACK),
        ("-m addrtype --dst-type LOCAL", _WITH_LOOPBACK),
        ("", _WITH_LOOPBACK),
        ("-s 127.0.0.1/32", _WITH_LOOPBACK),
        ("-d 203.0.113.0/24", _OWN),
        ("! -d 127.0.0.0/8", _OWN),
        ("-d 8.8.8.8/32", _OWN),
        (
            "-d 127.0.0.0/8",
            "the forward of line 3 answers there on 127.0.0.1 only, with `localhost = true` in [daemon]",
        ),
        ("-d 127.0.0.2/32", "no forward from here takes those"),
    ],
)
def test_a_forward_answers_the_host_itself_on_its_own_addresses(asks: str, said: str) -> None:
    everywhere = "-A PREROUTING -p tcp --dport 22 -j DNAT --to-destination 10.0.0.9"
    out = OUT.replace("-d 203.0.113.1/32", asks)
    (warning,) = [text for text in warnings(found([everywhere, out])) if text.startswith("4: ")]
    assert warning.endswith(said)


def test_no_proxy_on_the_loopback_interface_is_for_sctp() -> None:
    rules = [f"-A {chain} -p sctp --dport 22 -j DNAT --to 10.0.0.9" for chain in ("PREROUTING", "OUTPUT")]
    (warning,) = [text for text in warnings(found(rules)) if text.startswith("4: ")]
    assert warning.endswith(_OWN)


@pytest.mark.parametrize(
    ("rule", "is_told"),
    [
        ("-A POSTROUTING -d 10.0.0.9/32 -p tcp -j MASQUERADE", True),
        ("-A POSTROUTING -d 10.0.0.9/32 -j SNAT --to-source 10.0.0.1", True),
        ("-A POSTROUTING -j MASQUERADE", True),
        ("-A POSTROUTING -o virbr0 -j MASQUERADE", True),
        ("-A POSTROUTING -o eth0 -j MASQUERADE", False),
        ("-A POSTROUTING -s 10.0.0.0/24 -d 10.0.0.9/32 -j MASQUERADE", False),
        ("-A POSTROUTING -s 10.0.0.0/24 ! -d 10.0.0.0/24 -j MASQUERADE", False),
        ("-A POSTROUTING -d 10.0.0.8/32 -j MASQUERADE", False),
    ],
)
def test_that_the_guest_sees_other_addresses_is_told(rule: str, is_told: bool) -> None:  # noqa: FBT001  the expected value
    said = [warning for warning in warnings(found([SSH, rule])) if warning.endswith("has masquerade = true")]
    assert [warning[:3] for warning in said] == (["4: "] if is_told else [])
    assert warnings(found([SSH, rule])) == said


@pytest.mark.parametrize(
    ("asked", "rule", "is_told"),
    [
        ("-s 10.0.0.0/24", "-s 10.0.0.0/24 -d 10.0.0.9/32", False),
        ("-s 10.0.0.0/24", "-d 10.0.0.9/32", False),
        ("-i virbr0", "-d 10.0.0.9/32", False),
        ("-s 10.0.0.0/8", "-s 10.0.0.0/8 -d 10.0.0.9/32", True),
        ("-s 198.51.100.0/24", "-d 10.0.0.9/32", True),
        ("-i eth0", "-d 10.0.0.9/32", True),
        ("", "! -s 10.0.0.0/24 -d 10.0.0.9/32", True),
        ("", "-s 198.51.100.0/24 -d 10.0.0.9/32", False),
    ],
)
def test_that_clients_from_the_guests_network_are_renamed_is_no_difference(
    asked: str,
    rule: str,
    is_told: bool,  # noqa: FBT001  the expected value
) -> None:
    findings = found([SSH.replace("-d 203", f"{asked} -d 203"), f"-A POSTROUTING {rule} -j MASQUERADE"])
    assert len(forwards(findings)) == 1
    assert [text.endswith("has masquerade = true") for text in warnings(findings)] == [True] * is_told


def test_chains_in_a_circle_are_not_followed_for_ever() -> None:
    findings = found(["-A PREROUTING -j a", "-A a -j b", "-A a -j b", "-A b -j a", "-A b -j a", SSH])
    assert forwards(findings) == []
    assert warnings(findings)[0].endswith("its chains lead in a circle, or into more cases than can be followed")


def test_our_own_chains_are_passed_over() -> None:
    own = ["-A PREROUTING -j KVMPF_PRE", "-A KVMPF_PRE -p tcp --dport 22 -j DNAT --to-destination 10.0.0.8"]
    findings = found([*own, SSH])
    assert forwards(findings) == [f"{SSH_IS} at 5"]
