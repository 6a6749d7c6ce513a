"""Who may connect, in iptables-legacy: rules as text, and what their counters say."""

from dataclasses import replace
from pathlib import Path

import pytest

from fwdaemon.core.admission import Admission, Need, Rate, SourceSet
from fwdaemon.core.exposures import Exposure, Forward
from fwdaemon.core.report import Fault, FaultKind
from fwdaemon.core.state import Desired
from fwdaemon.core.types import Family, Origin, Until
from fwdaemon.legacy.admission import Drops, asking, rate_match
from fwdaemon.legacy.client import Lacking, left_out
from fwdaemon.legacy.ipsets import networks_of, wanted_sets, written
from fwdaemon.legacy.model import DENY, FWD, OUT, POST, PRE, TableName, limits_chain
from fwdaemon.legacy.ruleset import tables
from tests.unit.forwards import forward, nat, route, subnets

HERE = Origin(Path("/etc/portfwd.toml"), 1)
BAD = SourceSet.of("bad", HERE, subnets("203.0.113.0/24", "198.51.100.9/32", "2001:db8:9::/48"))
OFFICE = SourceSet.of("office", HERE, subnets("192.0.2.0/24"))
BANNED = SourceSet("banned", HERE, external=True)
WEB = forward("tcp *:80", "192.168.122.50:8080")
SSH = forward("tcp *:2222", "192.168.122.50:22")
NARROW = forward("tcp 198.51.100.7:80", "192.168.122.51:80")
MAIL = nat("198.51.100.8", "192.168.122.52")
ROUTE = route("203.0.113.64/29")
LIMITED = Admission(denied=("bad",), rate=Rate(30, "minute"), max_open=20)
NOT_FIRST = ["-m conntrack ! --ctstate NEW -j RETURN", "-m conntrack --ctstatus CONFIRMED -j RETURN"]
LABELLED = '-m connlabel --label "25" --set'
PORT_80 = "-p tcp -m tcp --dport 80"


def state(*exposures: Exposure, barred: Admission | None = None) -> Desired:
    return replace(Desired().having(exposures), sets=(BAD, OFFICE, BANNED), barred=barred)


def rules(desired: Desired, chain: str, table: TableName = TableName.MANGLE) -> list[str]:
    """Write what a chain holds, without comments; nothing where it is not there."""
    chains = tables(desired)[Family.IPV4].get(table)
    found = chains.chains.get(chain, ()) if chains is not None else ()
    return [f"{rule.matches} -j {rule.target}".lstrip() for rule in found]


def asked(desired: Desired) -> list[str]:
    """Write what is asked of first packets, without what sends other addresses back."""
    found = rules(desired, POST)
    assert found[:2] == NOT_FIRST
    return [rule for rule in found[2:] if "addrtype" not in rule and not rule.startswith(("-d 127.", "-d 169.254."))]


# --- forwards and 1:1 addresses --------------------------------------------------------------------------------------


def test_where_everybody_may_connect_nothing_is_asked() -> None:
    assert TableName.MANGLE not in tables(state(WEB, SSH))[Family.IPV4]
    assert rules(state(WEB, SSH), OUT, TableName.NAT) == rules(replace(state(WEB, SSH), sets=()), OUT, TableName.NAT)


def test_a_first_packet_is_asked_for_and_none_after_it() -> None:
    found = rules(state(replace(WEB, admission=LIMITED)), PRE)
    assert (found[:2], found[-1]) == (NOT_FIRST, f"-j {POST}")
    links = tables(state(replace(WEB, admission=LIMITED)))[Family.IPV4][TableName.MANGLE].heads
    assert {chain: link.target for chain, link in links.items()} == {"PREROUTING": PRE, "OUTPUT": POST}


def test_what_is_limited_is_asked_and_what_nobody_limits_is_not() -> None:
    web = replace(WEB, admission=LIMITED)
    limits = limits_chain(web)
    assert asked(state(web, SSH)) == [
        f"{PORT_80} -m set --match-set KVMPF_bad_4 src -j DROP",
        f"{PORT_80} -j {limits}",
        f"{PORT_80} -j RETURN",
    ]
    assert rules(state(web, SSH), limits) == [
        f"{rate_match(Rate(30, 'minute'), web.counted_as)} -j DROP",
        "-m connlimit --connlimit-above 20 --connlimit-mask 32 --connlimit-saddr -j DROP",
    ]


def test_what_goes_before_a_limited_forward_is_asked_first() -> None:
    first, *_ = asked(state(replace(WEB, admission=Admission(rate=Rate(1, "hour"))), NARROW))
    assert first == f"-d 198.51.100.7/32 {PORT_80} -j RETURN"


def test_a_table_nat_never_refuses() -> None:
    """iptables(8) takes no such rule, so what it prints could not be restored."""
    exposures = replace(WEB, admission=LIMITED), replace(MAIL, admission=Admission(sets=("office",))), SSH
    desired = state(*exposures, barred=Admission(denied=("bad",)))
    for chain in (PRE, OUT, POST):
        assert not any("DROP" in rule for rule in rules(desired, chain, TableName.NAT))


def test_who_is_in_no_set_of_sources_goes_on_as_if_there_were_no_forward() -> None:
    web = replace(WEB, admission=Admission(sets=("office",), sources=tuple(subnets("192.0.2.99/32"))))
    found = [rule for rule in rules(state(web), OUT, TableName.NAT) if "DNAT" in rule]
    there = "-j DNAT --to-destination 192.168.122.50:8080"
    assert found == [
        f"-s 192.0.2.99/32 {PORT_80} {LABELLED} {there}",
        f"{PORT_80} -m set --match-set KVMPF_office_4 src {LABELLED} {there}",
    ]
    assert not rules(state(web), POST)


def test_whom_a_one_to_one_address_does_not_name_meets_neither_guest_nor_host() -> None:
    mail = replace(MAIL, admission=Admission(sets=("office",)))
    named, elsewhere = "-d 198.51.100.8/32", "-m addrtype ! --dst-type LOCAL"
    assert rules(state(mail), POST)[2:] == [
        f"{named} {elsewhere} -m set --match-set KVMPF_office_4 src -j RETURN",
        f"{named} -m set --match-set KVMPF_office_4 src -j RETURN",
        f"{named} {elsewhere} -j DROP",
        f"{named} -j DROP",
    ]


def test_whom_everything_denies_is_asked_for_once_for_ports_that_follow_each_other() -> None:
    ports = [forward(f"tcp *:{port}", f"192.168.122.50:{port}") for port in range(8000, 8100)]
    barred = Admission(denied=("banned",), deny=tuple(subnets("192.0.2.7/32", "2001:db8::7/128")))
    desired = state(*ports, NARROW, barred=barred)
    assert asked(desired) == [
        f"-d 198.51.100.7/32 {PORT_80} -j {DENY}",
        f"-p tcp -m tcp --dport 8000:8099 -j {DENY}",
    ]
    assert rules(desired, DENY) == ["-s 192.0.2.7/32 -j DROP", "-m set --match-set KVMPF_banned_4 src -j DROP"]


def test_all_that_an_entry_opens_has_one_chain_of_limits() -> None:
    once = Admission(rate=Rate(1, "day"), entry="one")
    desired = state(replace(WEB, admission=once), replace(SSH, admission=once))
    assert len([chain for chain in asking(Family.IPV4, desired) if chain not in (PRE, POST)]) == 1


# --- routes ----------------------------------------------------------------------------------------------------------


def test_a_route_labels_only_who_may_connect() -> None:
    asks = Admission(denied=("bad",), rate=Rate(5, "second"))
    way, first = "-d 203.0.113.64/29 -o virbr1", "-m conntrack ! --ctstatus CONFIRMED"
    limits = limits_chain(replace(ROUTE, admission=asks))
    found = rules(state(replace(ROUTE, admission=asks), barred=Admission(denied=("banned",))), OUT)
    assert found[:5] == [
        f"{way} {first} -j {DENY}",
        f"{way} {first} -m set --match-set KVMPF_bad_4 src -j DROP",
        f"{way} {first} -j {limits}",
        f"{way} {first} {LABELLED} -j RETURN",
        f"{way} {LABELLED} -j RETURN",
    ]


def test_whom_a_route_does_not_name_is_refused_where_libvirt_would_let_him_in() -> None:
    desired = state(replace(ROUTE, admission=Admission(sets=("office",))))
    assert rules(desired, FWD, TableName.FILTER) == [
        '-m connlabel --label "25" -j ACCEPT',
        '-d 203.0.113.64/29 ! -i virbr1 -o virbr1 -m conntrack --ctstate NEW -m connlabel ! --label "25" -j DROP',
    ]
    assert rules(desired, OUT)[0].startswith("-d 203.0.113.64/29 -o virbr1 -m set --match-set KVMPF_office_4 src")


# --- counters --------------------------------------------------------------------------------------------------------


def test_what_was_refused_is_told_of_the_exposure_and_of_the_set() -> None:
    web, other = (replace(item, admission=replace(LIMITED, entry="one")) for item in (WEB, SSH))
    desired = state(web, other)
    limits = limits_chain(web)
    said = {f"{PORT_80} -m set --match-set KVMPF_bad_4 src -j DROP": 7, f"{PORT_80} -j {limits}": 10}
    said |= {f"{PORT_80} -j RETURN": 6, f"-p tcp -m tcp --dport 2222 -j {limits}": 3}
    said |= {"-p tcp -m tcp --dport 2222 -j RETURN": 4}
    found = Drops(desired).of((counter, said.get(text, 0)) for counter, text in _counters(desired))
    assert found.by_set == {"bad": 7}
    assert found.by_exposure == {web: 4, other: 0}


def _counters(desired: Desired) -> list[tuple[tuple[str, str, str], str]]:
    found = tables(desired)[Family.IPV4][TableName.MANGLE].chains.items()
    return [
        (("ip mangle", chain, rule.comment), f"{rule.matches} -j {rule.target}")
        for chain, items in found
        for rule in items
    ]


@pytest.mark.parametrize("unit", ["second", "minute", "hour", "day"])
@pytest.mark.parametrize("number", [1, 2, 3, 30, 99_999])
def test_what_a_source_may_save_up_and_gains_at_rest_fits_what_the_kernel_counts_in(unit: str, number: int) -> None:
    """`MAX_CPJ` of xt_hashlimit.c gives a day 64 bits, and `POW2_BELOW64` leaves at least half as much again."""
    rate = Rate(number, unit)
    words = rate_match(rate, "").split()
    burst, rest_ms = int(words[words.index("--hashlimit-burst") + 1]), int(words[-1])
    each_s = rate.seconds / number
    gained_s = burst * each_s + rest_ms / 1000 - (each_s if number <= 2 else 0)
    assert 1 <= burst <= number
    assert gained_s <= 1.5 * 86_400
    assert rest_ms / 1000 >= burst * each_s - 0.001


# --- ipsets ----------------------------------------------------------------------------------------------------------


def test_a_set_is_an_ipset_for_each_family_and_those_of_others_are_there_before_anything_is() -> None:
    web = replace(WEB, admission=LIMITED)
    assert wanted_sets(state(web)).keys() == {"KVMPF_bad_4", "KVMPF_banned_4", "KVMPF_banned_6"}
    assert wanted_sets(state()).keys() == {"KVMPF_banned_4", "KVMPF_banned_6"}
    assert set(networks_of(BAD.parts, Family.IPV4)) == {"203.0.113.0/24", "198.51.100.9"}
    assert "add KVMPF_bad_4 198.51.100.9\n" in written(state(web))
    assert not written(replace(state(web), sets=()))


def test_what_a_host_lacks_keeps_closed_what_needs_it_and_is_tried_again() -> None:
    reasons: dict[Need, str | None] = {Need.RATE: "no such match", Need.OPEN: None, Need.SETS: None}
    lacking = Lacking(lambda _, needs: [reasons[need] for need in needs])
    web, ssh = replace(WEB, admission=Admission(rate=Rate(1, "hour"))), replace(SSH, admission=Admission(max_open=3))
    desired = state(web, ssh, NARROW)
    kept, result = left_out(desired, lacking)
    assert kept.exposures == {ssh, NARROW}
    fault = Fault(FaultKind.NO_MATCH, ("rate", "4", "hashlimit"), "no such match")
    assert (result.refused, result.faults) == (((web, fault),), (fault,))
    reasons[Need.RATE] = None
    assert left_out(desired, lacking)[0] is desired


@pytest.mark.parametrize("exposure", [SSH, replace(SSH, admission=Admission(max_open=3))], ids=["plain", "limited"])
def test_without_ipset_what_is_open_for_a_while_knows_one_clock_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, exposure: Forward
) -> None:
    lacking = Lacking(lambda _, needs: [None for _ in needs])
    lasting = state(replace(WEB, until=Until(1_772_000_000, 5_000.0)), exposure)
    assert left_out(state(exposure), lacking)[1].faults == ()
    monkeypatch.setenv("PATH", "/nowhere")
    kept, result = left_out(lasting, lacking)
    assert (kept.counts_down, result.faults, kept.exposures) == (
        False,
        (Fault(FaultKind.ONE_CLOCK),),
        lasting.exposures,
    )
    monkeypatch.undo()
    monkeypatch.setattr("fwdaemon.legacy.client.shutil.which", lambda _: "/usr/sbin/ipset")
    kept, result = left_out(lasting, lacking)
    assert (kept.counts_down, result.faults) == (True, ())


def test_without_ipset_all_stays_closed_that_a_set_could_deny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    desired: Desired = state(WEB, SSH, barred=Admission(denied=("banned",)))
    kept, result = left_out(desired, Lacking(lambda _, needs: [None for _ in needs]))
    assert not kept.exposures
    assert {item for item, _ in result.refused} == {WEB, SSH}
    assert result.faults == (Fault(FaultKind.NO_IPSET, ("set:…",)),)
    plain: Forward = WEB
    assert left_out(state(plain), Lacking(lambda _, needs: [None for _ in needs]))[0].exposures == {plain}
