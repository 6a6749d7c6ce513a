"""Who may connect: the keys of the configuration, files of networks, and what follows from them."""

from dataclasses import replace
from ipaddress import ip_address, ip_network
from itertools import pairwise
from pathlib import Path

import pytest

from fwdaemon.config import load, load_guarded, parse
from fwdaemon.config.model import Config
from fwdaemon.config.sets import MOST_NETWORKS, place_of, read_list
from fwdaemon.core.admission import Admission, Element, Gatekeeper, Need, Ranges, Rate, SourceSet
from fwdaemon.core.report import Fault, FaultKind
from fwdaemon.core.state import Desired
from fwdaemon.core.types import Family, Origin, PortRange, Protocol
from fwdaemon.errors import ConfigError, ProcessError
from fwdaemon.explain.arrival import parse_request
from fwdaemon.explain.report import Cause
from fwdaemon.explain.trace import explain
from fwdaemon.kernel.external_sets import Added, Externals
from fwdaemon.kernel.process import Finished
from fwdaemon.nftables.difference import difference
from fwdaemon.nftables.generation import lacking
from fwdaemon.nftables.ruleset import tables
from fwdaemon.nftables.table_cache import TableCache, limited_sources
from fwdaemon.resolve.flows import Flow, Judge
from tests.unit.forwards import forward, nat, route
from tests.unit.trace_scene import FORWARD, host, libvirt, told

MAIN = Path("/etc/portfwd.toml")
LIST = Path("/etc/portfwd.d/blocklist.txt")
HERE = Origin(MAIN, 1)
OFFICE = '[[set]]\nname = "office"\naddresses = ["203.0.113.0/24", "2001:db8:9::/48"]\n'
BIG = f'[[set]]\nname = "big"\nfile = "{LIST}"\n'
BANNED = '[[set]]\nname = "banned"\nexternal = true\n'
WEB = '[[forward]]\ndomain = "web"\nports = ["80"]\n'


def read(text: str, listed: bytes = b"192.0.2.1\n") -> Config:
    return parse({MAIN: text}, {LIST: listed})


def problems(text: str, listed: bytes = b"") -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(text, listed)
    return [str(problem) for problem in caught.value.problems]


# --- keys ------------------------------------------------------------------------------------------------------------


def test_networks_of_the_configuration_itself_are_sources_like_those_written_in_place() -> None:
    (entry,) = read(WEB + 'sources = ["10.0.0.0/8", "set:office"]\n' + OFFICE).forwards
    assert entry.sources == tuple(map(ip_network, ("10.0.0.0/8", "203.0.113.0/24", "2001:db8:9::/48")))
    assert entry.admission is None


def test_what_is_in_a_file_or_is_others_is_asked_for_by_name() -> None:
    keys = 'sources = ["10.0.0.0/8", "set:big"]\ndeny = ["set:banned", "192.0.2.0/24"]\nrate = "5/hour"\nmax_open = 7\n'
    (entry,) = read(WEB + keys + BIG + BANNED).forwards
    asked = Admission((ip_network("10.0.0.0/8"),), ("big",), (ip_network("192.0.2.0/24"),), ("banned",))
    assert entry.admission is not None
    limited = replace(asked, rate=Rate(5, "hour"), max_open=7, entry=entry.admission.entry)
    assert (entry.sources, entry.admission) == ((), limited)


def test_every_kind_of_entry_denies_and_so_does_the_daemon() -> None:
    text = (
        '[daemon]\ndeny = "set:banned"\n[[nat]]\ndomain = "m"\npublic = "198.51.100.8"\ndeny = ["set:banned"]\n'
        '[[route]]\nnetwork = "n"\naddresses = ["203.0.113.64/29"]\ndeny = ["192.0.2.1"]\n'
    )
    found = read(text + BANNED)
    assert found.daemon.barred == found.nats[0].admission == Admission(denied=("banned",))
    assert found.routes[0].admission == Admission(deny=(ip_network("192.0.2.1"),))


def test_one_to_one_addresses_and_routes_have_sources_too() -> None:
    text = (
        '[[nat]]\ndomain = "m"\npublic = "198.51.100.8"\nsources = ["10.0.0.0/8", "set:banned"]\n'
        '[[route]]\nnetwork = "n"\naddresses = ["203.0.113.64/29"]\nsources = ["192.0.2.0/24"]\n'
    )
    found = read(text + BANNED)
    assert found.nats[0].admission == Admission((ip_network("10.0.0.0/8"),), ("banned",))
    assert found.routes[0].admission == Admission((ip_network("192.0.2.0/24"),))


def test_what_one_entry_opens_for_one_guest_is_counted_together_and_nothing_else_is() -> None:
    limited = '[[forward]]\ndomain = "{}"\nports = {}\nrate = "5/hour"\n'
    text = limited.format("web", '["80", "443"]') + limited.format("web", '["8080"]') + limited.format("app", '["90"]')
    one, other, third = read(text).forwards
    web = forward("tcp *:80", "192.168.122.50:80")
    names = [
        replace(web, domain=domain, ports=PortRange(port, port), admission=entry.admission).counted_as
        for domain, port, entry in (("a", 80, one), ("a", 443, one), ("b", 80, one), ("a", 80, other), ("a", 80, third))
    ]
    assert names[0] == names[1]
    assert len(set(names)) == 4
    again = read("# a line more\n" + text).forwards[0]
    assert again.admission == one.admission


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            '[[nat]]\ndomain = "m"\npublic = "198.51.100.8"\nsources = ["2001:db8::/32"]\n',
            "sources: is IPv6 only, but public is IPv4 only, so nothing could match; write both in one family",
        ),
        (
            '[[route]]\nnetwork = "n"\naddresses = ["2001:db8:1::/64"]\nsources = "192.0.2.1"\n',
            "sources: is IPv4 only, but addresses are IPv6 only, so nothing could match; write both in one family",
        ),
        (WEB + 'deny = ["set:bannd"]\n' + BANNED, '4: no set is called "bannd"; did you mean "set:banned"?'),
        ('[daemon]\ndeny = ["set:x"]\n', '2: no set is called "x"; write a [[set]] with name = "x"'),
        (WEB + 'rate = "30 per min"\n', 'write "30/minute"'),
        (WEB + 'rate = "0/second"\n', 'write "30/minute"'),
        (WEB + 'max_open = "20"\n', "write a number from 1 to 65,535 such as 20, without quotes"),
        (WEB + "deny = []\n", "no one is kept out; name at least one, or remove it"),
        (WEB + 'deny = ["@office"]\n' + OFFICE, 'write "set:office"'),
        ('[[set]]\nname = "a b"\nexternal = true\n', 'write "a_b"'),
        ('[[set]]\nname = "a"\n', "holds nothing; write addresses"),
        ('[[set]]\nname = "a"\nexternal = false\n', "must be true; write addresses or file"),
        ('[[set]]\nname = "a"\nexternal = true\naddresses = ["192.0.2.1"]\n', "stands beside addresses"),
        ('[[set]]\nname = "a"\nfile = "list.txt"\n', "no absolute path"),
        (BANNED + BANNED, '5: a set "banned" is already at /etc/portfwd.toml:2'),
        ('[[set]]\nname = "a"\nfile = "/nowhere"\n', 'set "a": /nowhere is not there'),
    ],
)
def test_what_is_wrong_is_told_with_its_line_and_a_remedy(text: str, said: str) -> None:
    assert any(said in problem for problem in problems(text)), problems(text)


def test_a_set_that_nothing_names_is_fine() -> None:
    assert [item.name for item in read(OFFICE + BIG + BANNED).sets] == ["office", "big", "banned"]


# --- files of networks -----------------------------------------------------------------------------------------------


def test_a_file_has_a_network_a_line_and_comments() -> None:
    text = b"# all\n\n192.0.2.1\r\n 198.51.100.0/24 # some\n2001:DB8::/32\n2001:db8:0:0::7\n0.0.0.0/0\n192.0.2.1/32\n"
    parts, wrong = read_list(LIST, text)
    assert not wrong
    assert {key: list(found) for key, found in parts.items()} == {
        (Family.IPV4, 32): ["192.0.2.1"],
        (Family.IPV4, 24): ["198.51.100.0"],
        (Family.IPV6, 32): ["2001:db8::"],
        (Family.IPV6, 128): ["2001:db8::7"],
        (Family.IPV4, 1): ["0.0.0.0", "128.0.0.0"],  # noqa: S104  the first half of all addresses
    }


@pytest.mark.parametrize(
    "line", ["192.0.2.1/24", "nonsense", "1.2.3", "192.0.2.1/33", "::ffff:192.0.2.1", "192.0.2.1 x"]
)
def test_one_wrong_line_is_named_and_nothing_of_the_file_counts(line: str) -> None:
    said = problems(WEB + 'deny = ["set:big"]\n' + BIG, f"192.0.2.1\n\n{line}\n".encode())
    assert [text.startswith(f"{LIST}:3: ") for text in said] == [True]


def test_the_wrong_line_of_a_long_file_is_named() -> None:
    lines = [f"{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}.1" for number in range(100_000)]
    lines[99_998] = "1.2.3"
    said = problems(WEB + 'deny = ["set:big"]\n' + BIG, "\n".join(lines).encode())
    assert [text.startswith(f"{LIST}:99999: ") for text in said] == [True]


def test_a_file_that_is_too_long_is_refused() -> None:
    lines = (f"{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}.1" for number in range(1, MOST_NETWORKS + 2))
    _, wrong = read_list(LIST, "\n".join(lines).encode())
    assert ["more than 250,000" in problem.text for problem in wrong] == [True]


def test_files_are_read_with_the_configuration_and_only_roots(tmp_path: Path) -> None:
    main, listed = tmp_path / "portfwd.toml", tmp_path / "list.txt"
    main.write_text(WEB + 'deny = ["set:big"]\n' + f'[[set]]\nname = "big"\nfile = "{listed}"\n')
    listed.write_text("192.0.2.1\n")
    assert load(main).sets[0].number == 1
    listed.chmod(0o666)
    with pytest.raises(ConfigError, match=r"mode 0666"):
        load_guarded(main)


# --- who is refused --------------------------------------------------------------------------------------------------

BAD = SourceSet.of("bad", HERE, map(ip_network, ("198.51.100.0/24", "2001:db8::9")))
CLIENT = ip_address("198.51.100.7")


def test_the_gatekeeper_knows_sets_of_every_kind() -> None:
    ranges = {(Family.IPV4, "banned"): Ranges([Element(int(CLIENT), int(CLIENT) + 2)])}
    keeper = Gatekeeper({"bad": BAD}, None, ranges)
    assert keeper.refusal(Admission(denied=("bad",)), CLIENT) is not None
    assert keeper.refusal(Admission(denied=("banned",)), CLIENT + 2) is not None
    assert keeper.refusal(Admission(denied=("banned",)), CLIENT + 3) is None
    assert keeper.refusal(Admission(sets=("bad",)), CLIENT) is None
    assert keeper.refusal(Admission(sets=("bad",)), ip_address("192.0.2.1")) is not None
    loopback = SourceSet.of("own", HERE, [ip_network("::1")])
    assert Gatekeeper({"own": loopback}).refusal(Admission(denied=("own",)), ip_address("::1")) is not None
    assert replace(keeper, everywhere=Admission(denied=("bad",))).refusal(None, CLIENT) is not None


def test_connections_of_who_is_denied_are_outdated_and_those_that_a_guest_opened_are_not() -> None:
    denied = Admission(denied=("bad",))
    web = replace(forward("tcp *:80", "192.168.122.50:80"), admission=denied)
    mail = replace(nat("198.51.100.8", "192.168.122.51"), admission=denied)
    keeper = Desired(sets=(BAD,)).having([web, mail]).gatekeeper()
    judge = Judge([web, mail], (), gatekeeper=keeper)
    host_, guest = ip_address("192.0.2.80"), web.target
    came = Flow(Protocol.TCP, CLIENT, host_, 80, guest, 80, CLIENT, 4000)
    named = replace(mail, admission=Admission(sources=(ip_network("192.0.2.1/32"),)))
    refusing = Judge([named], (), gatekeeper=Desired().having([named]).gatekeeper())
    to_mail = replace(came, destination=mail.public, destination_port=25, server=mail.target, server_port=25)
    passing = replace(to_mail, source=ip_address("192.0.2.1"), client=ip_address("192.0.2.1"))
    assert [refusing.is_outdated(flow) for flow in (to_mail, passing)] == [True, False]
    other = replace(came, source=ip_address("192.0.2.1"), client=ip_address("192.0.2.1"))
    went = Flow(Protocol.TCP, mail.target, CLIENT, 25, CLIENT, 25, mail.public, 4000)
    assert [judge.is_outdated(flow) for flow in (came, other, went)] == [True, False, False]


def test_externals_tell_once_what_there_is_more() -> None:
    seen, place, heard = Externals(), (Family.IPV4, "banned"), list[int]()
    seen.names, seen.news = frozenset({"banned"}), lambda: heard.append(1)
    one = Element(int(CLIENT), int(CLIENT))
    seen.change(place, {one: 100.0}, ())
    assert seen.take_added() == Added(frozenset({CLIENT}))
    assert seen.take_added() == Added()
    assert seen.left(place, 60.0) == {one: 40.0}
    assert seen.left(place, 100.0) == {}
    seen.change(place, {Element(0, 9): None}, [one])
    assert seen.take_added().many
    assert [*seen.left(place, 0.0)] == [Element(0, 9)]
    assert len(heard) == 2


# --- rules -----------------------------------------------------------------------------------------------------------

PLAIN = forward("tcp *:80", "192.168.122.50:80")
STATES = [
    Desired().having([PLAIN]),
    replace(Desired().having([replace(PLAIN, admission=Admission(denied=("bad",)))]), sets=(BAD,)),
    replace(Desired().having([PLAIN]), sets=(BAD,), barred=Admission(denied=("bad",))),
    replace(
        Desired().having([replace(PLAIN, admission=Admission(sets=("bad",), rate=Rate(3, "minute"), max_open=2))]),
        sets=(BAD, SourceSet("banned", HERE, external=True)),
    ),
    replace(Desired().having([replace(PLAIN, admission=Admission(sets=("bad",)))]), sets=(SourceSet("bad", HERE),)),
    replace(Desired().having([replace(route("203.0.113.64/29"), admission=Admission(denied=("bad",)))]), sets=(BAD,)),
]


def test_a_forward_without_sets_and_limits_has_the_same_rules_as_ever() -> None:
    (alone,), (beside,) = tables(STATES[0]).values(), tables(replace(STATES[0], sets=(BAD,))).values()
    assert alone == beside
    assert not any(name.startswith(("set_", "rate.", "open.")) for name in alone.sets)
    assert not any(name.startswith("deny.") for name in alone.chains)


@pytest.mark.parametrize("before", STATES)
@pytest.mark.parametrize("after", STATES)
def test_tables_that_are_kept_are_those_that_would_be_made_anew(before: Desired, after: Desired) -> None:
    cache = TableCache()
    cache.tables(before)
    assert cache.tables(after) == tables(after)


def test_whom_a_one_to_one_address_or_a_route_does_not_name_is_dropped_and_a_forward_lets_go_on() -> None:
    office = Admission(sources=(ip_network("198.51.100.0/24"),))
    exposures = (
        replace(nat("192.0.2.8", "192.168.122.51"), admission=office),
        replace(route("203.0.113.64/29"), admission=office),
        replace(PLAIN, admission=Admission(sets=("bad",))),
    )
    (table,) = tables(replace(Desired().having(exposures), sets=(BAD,))).values()
    last = {name: chain.rules[-1].expression for name, chain in table.chains.items() if chain.hook is None}
    assert last["nat.192.0.2.8"] == "counter drop"
    assert last["to.203.0.113.64/29"] == 'iifname != "virbr1" oifname "virbr1" counter drop'
    assert last["any.tcp.80"].endswith("dnat to 192.168.122.50:80")


def test_sets_come_and_go_without_the_table() -> None:
    for before, after in pairwise(STATES):
        script = difference(Family.IPV4, tables(after)[Family.IPV4], tables(before)[Family.IPV4]).script
        assert script
        assert not any(line.startswith(("delete table", "create table")) for line in script)


def test_whom_a_limit_stops_is_read_from_what_counts_him() -> None:
    rate = "limit rate over 2/day burst 2 packets counter packets"
    sets = {
        "set_bad": "192.0.2.1 counter packets 3 bytes 4",
        "rate.0a1b": f"192.0.2.1 {rate} 5 bytes 300 expires 23h,\n\t\t\t     192.0.2.2 {rate} 0 bytes 0 expires 23h",
        "open.0a1b": "192.0.2.1 ct count over 2  counter packets 1 bytes 60",
    }
    listed = (f"\tset {name} {{\n\t\telements = {{ {held} }}\n\t}}\n" for name, held in sets.items())
    text = f"table ip kvm_portfwd {{\n{''.join(listed)}}}\n"
    assert limited_sources(text) == {"0a1b": {ip_address("192.0.2.1"): 6}}


# --- explain ---------------------------------------------------------------------------------------------------------


def test_what_the_kernel_lacks_is_told_with_the_module_that_has_it_and_nothing_else_it_refuses() -> None:
    saying = {"limit rate": "No such file or directory", "ct count": "Operation not permitted", "@sample drop": ""}

    class Refusing:
        def run(self, *argv: str, stdin: str = "") -> Finished:
            (said,) = (said for words, said in saying.items() if words in stdin)
            if said:
                raise ProcessError(argv, stdin, 1, f"/dev/stdin:3:1-9: Error: Could not process rule: {said}\n")
            return Finished("", "", 7)

    assert lacking(Refusing(), [*Need]) == {
        Need.RATE: Fault(FaultKind.NO_EXPRESSION, ("rate", "limit", "nft_limit"), "No such file or directory")
    }


def test_explain_names_the_line_of_the_network_that_refuses() -> None:
    text = b"# bad\n198.51.100.0/24\n\n198.51.100.7 # worse\n::/0\n"
    config = parse({MAIN: FORWARD + 'deny = ["set:big"]\n' + BIG}, {LIST: text})
    for client, line in (str(CLIENT), 4), ("198.51.100.8", 2):
        request = parse_request("198.51.100.1:8000", client)
        report = explain(request, config, libvirt(), host(lists={LIST: text}), str(MAIN))
        assert f" at {LIST}:{line})" in report.steps[-1].text
    (written,) = read('[[set]]\nname = "office"\naddresses = [\n"192.0.2.0/24",\n"0.0.0.0/0",\n]\n').sets
    assert [place_of(ip_network(text), written, b"").line for text in ("192.0.2.0/24", "128.0.0.0/1")] == [4, 5]


def test_explain_takes_a_client_that_may_connect_where_none_is_named() -> None:
    text = FORWARD + 'sources = ["set:big"]\n' + BIG
    config = parse({MAIN: text}, {LIST: b"203.0.113.0/24\n"})
    report = explain(parse_request("198.51.100.1:8000"), config, libvirt(), host(), str(MAIN))
    assert any("203.0.113.1" in step.text for step in report.steps if step.name == "admission")


def test_explain_says_that_a_client_is_over_a_limit_where_it_was_of_late() -> None:
    text = FORWARD + 'rate = "3/minute"\nmax_open = 2\n'
    report = told(source=str(CLIENT), text=text, world=host(over={str(CLIENT): 7}))
    (step,) = (step for step in report.steps if step.name == "admission")
    assert "one address may have 3 new connections a minute and 2 open ones" in step.text
    assert "7 of its first packets were dropped of late" in step.remedy
    (other,) = (step for step in told(source="192.0.2.1", text=text).steps if step.name == "admission")
    assert not other.remedy
    report = told(source=str(CLIENT), text=text, world=host(over={str(CLIENT): None}))
    assert any("what it may open is used up" in step.remedy for step in report.steps)


def test_explain_says_whom_a_one_to_one_address_is_for() -> None:
    text = '[[nat]]\ndomain = "web"\npublic = "198.51.100.8"\nsources = ["203.0.113.0/24", "set:office"]\n'
    office = '[[set]]\nname = "office"\naddresses = ["192.0.2.0/24"]\n'
    report = told("198.51.100.8:80", "198.51.100.99", text=text + office)
    last = report.steps[-1]
    assert (last.cause, last.remedy) == (
        Cause.ON_PURPOSE,
        "This is on purpose: 198.51.100.99 is not among those who may connect.",
    )
    assert any("from 203.0.113.0/24, set office" in step.text for step in report.steps)
    for source in "203.0.113.9", "192.0.2.7":
        steps = told("198.51.100.8:80", source, text=text + office).steps
        assert any(step.text == f"nothing denies {source}" for step in steps)


def test_explain_names_the_set_that_refuses_and_never_advises_to_open() -> None:
    text = FORWARD + 'deny = ["set:banned", "set:office"]\n' + OFFICE + BANNED
    ranges = {(Family.IPV4, "banned"): Ranges([Element(int(CLIENT), int(CLIENT))])}
    for source, named in (
        (str(CLIENT), "set banned"),
        ("203.0.113.9", "set office (203.0.113.0/24 at /etc/portfwd.toml:"),
    ):
        report = told(source=source, text=text, world=host(elements=ranges))
        last = report.steps[-1]
        assert last.cause is Cause.ON_PURPOSE
        assert named in last.text
        assert "This is on purpose" in last.remedy
        assert "write" not in last.remedy
