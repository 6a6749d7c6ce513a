"""From what is known to the rows of `status`: what is live, what waits, what the host refuses."""

from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import ip_address, ip_network

from fwdaemon.core.admission import Admission, Rate
from fwdaemon.core.exposures import Owner
from fwdaemon.core.inventory import Hindrance, HindranceKind, Move, Place
from fwdaemon.core.state import Desired, Dropped, Waiting
from fwdaemon.core.types import Family
from fwdaemon.status.model import Row, State, Usage, counts
from fwdaemon.status.rows import Facts, Readings, rows
from tests.sentences import error
from tests.unit.forwards import forward, nat, route
from tests.unit.saying import HANDED_OVER, NO_ADDRESS, STOPPED
from tests.unit.statuses import LIVE, NAT, ROUTE, WEB, WEB6, origin, read, waiting

NOTHING = Readings()


def shown(found: tuple[Row, ...]) -> list[tuple[str, str, str]]:
    """Each row as its state, what it listens on, and where it leads or why it does not."""
    return [(row.state.value, row.listens, row.reason or row.leads) for row in found]


def test_what_is_live_is_active() -> None:
    found = rows(Facts(read(""), LIVE, LIVE), NOTHING)
    assert [row.owner.name for row in found] == ["game", "lab", "post", "web1", "web1"]
    assert shown(found)[1:3] == [
        ("active", "route 2001:db8:1::/64", "virbr2"),
        ("active", "all of 198.51.100.9", "192.168.122.51"),
    ]
    assert counts(found) == {"active": 5, "waiting": 0, "refused": 0}


def test_who_may_connect_and_whom_limits_stop_is_told() -> None:
    asked = Admission((ip_network("192.0.2.0/24"),), ("office",), denied=("bad",), rate=Rate(3, "hour"), max_open=2)
    limited = replace(WEB, admission=asked)
    clients = {ip_address(f"192.0.2.{number}"): number for number in range(1, 20)} | {ip_address("2001:db8::1"): 99}
    dropped = Dropped({limited: 7}, by_source={limited.counted_as: clients})
    state = Desired().having([limited, NAT])
    plain, web = (row.as_json() for row in rows(Facts(read(""), state, state), Readings(dropped=dropped)))
    told = [web[key] for key in ("sources", "deny", "rate", "max_open", "dropped")]
    assert told == [["192.0.2.0/24", "set:office"], ["set:bad"], "3/hour", 2, 7]
    assert web["limited"][:2] == [{"source": "192.0.2.19", "dropped": 19}, {"source": "192.0.2.18", "dropped": 18}]
    assert (len(web["limited"]), web["limited_sources"]) == (10, 19)
    assert [plain[key] for key in ("sources", "deny", "rate", "limited")] == [[], [], None, []]


def test_everything_waits_for_libvirt_before_its_first_answer() -> None:
    found = rows(Facts(read()), NOTHING)
    assert {row.reason for row in found} == {"libvirt has not answered yet"}
    assert {row.state for row in found} == {State.WAITING}
    assert Owner("public", "network") in {row.owner for row in found}


def test_what_waits_has_a_row_for_each_port_and_address() -> None:
    config = read()
    found = rows(Facts(config, Desired(waiting=waiting(config)), Desired()), NOTHING)
    assert [(row.listens, row.leads) for row in found if row.owner.name.startswith("db")] == [
        ("tcp 198.51.100.7:5432", ""),
        ("tcp [2001:db8::7]:5432", ""),
        ("udp 198.51.100.7:6000-6009", ""),
        ("udp [2001:db8::7]:6000-6009", ""),
    ]
    assert {str(row.origin) for row in found if row.owner.name == "public"} == {"/etc/portfwd.toml:19"}


def test_of_an_entry_that_is_live_in_one_family_the_other_waits() -> None:
    config = read('[[forward]]\ndomain = "web1"\nlisten = ["198.51.100.7", "2001:db8::7"]\nports = ["80"]')
    live = replace(forward("tcp 198.51.100.7:80", "192.168.122.10:80"), origin=config.forwards[0].mappings[0].origin)
    reason = Waiting(Owner("web1"), NO_ADDRESS, config.forwards[0].origin)
    state = Desired(waiting=(reason,)).having([live])
    assert shown(rows(Facts(config, state, state), NOTHING)) == [
        ("active", "tcp 198.51.100.7:80", "192.168.122.10:80"),
        ("waiting", "tcp [2001:db8::7]:80", "no address yet: no lease, agent or neighbour names one"),
    ]


def test_a_domain_that_has_stopped_but_is_held_for_a_moment_is_told_once() -> None:
    config = read('[[forward]]\ndomain = "web1"\nports = ["80"]')
    held = replace(WEB, origin=config.forwards[0].mappings[0].origin)
    state = Desired(waiting=waiting(config)).having([held])
    assert shown(rows(Facts(config, state, state), NOTHING)) == [("active", "tcp *:80", "192.168.122.10:80")]


def test_two_reasons_for_one_entry_are_both_told() -> None:
    config = read('[[forward]]\ndomain = "web1"\nports = ["80"]')
    at = config.forwards[0].origin
    reasons = tuple(
        Waiting(Owner("web1"), Hindrance(HindranceKind.NO_SUBNET, family=family, places=(Place(network="lan"),)), at)
        for family in Family
    )
    found = rows(Facts(config, Desired(waiting=reasons), Desired()), NOTHING)
    assert shown(found) == [("waiting", "tcp *:80", "network lan has no IPv4 subnet; network lan has no IPv6 subnet")]
    assert found[0].as_json()["reason_kinds"] == ["no-subnet"]


def test_entries_on_one_line_keep_their_own_reasons() -> None:
    config = read('forward = [{domain = "a", ports = ["1"]}, {domain = "b", ports = ["2"]}]')
    found = (Waiting(Owner("a"), STOPPED, origin(1)), Waiting(Owner("b"), HANDED_OVER, origin(1)))
    assert shown(rows(Facts(config, Desired(waiting=found), Desired()), NOTHING)) == [
        ("waiting", "tcp *:1", "the domain is not running"),
        ("waiting", "tcp *:2", "it was handed over to another host"),
    ]


def test_programs_are_told_why_an_entry_waits_by_kind() -> None:
    config, listed = (
        read('[[forward]]\ndomain = "a"\nports = ["1"]\nlisten = "198.51.100.77"'),
        ip_address("198.51.100.77"),
    )
    at = config.forwards[0].origin
    reasons = tuple(Waiting(Owner("a"), hindrance, at) for hindrance in (STOPPED, NO_ADDRESS))
    (row,) = rows(Facts(config, Desired(waiting=reasons), Desired()), NOTHING)
    assert row.as_json()["reason_kinds"] == ["domain-not-running", "no-address"]
    state = Desired().having([forward("tcp 198.51.100.77:1", "192.168.122.10:1", domain="a")])
    for elsewhere, kinds in ({}, []), ({listed: "02:00:00:00:00:77"}, ["held-elsewhere"]):
        (row,) = rows(Facts(config, state, state), Readings(elsewhere=elsewhere))
        assert row.as_json()["reason_kinds"] == kinds


def test_what_the_kernel_did_not_take_is_refused_and_the_rest_goes_on() -> None:
    wanted, held = Desired().having([WEB, NAT]), Desired().having([WEB, ROUTE])
    found = rows(Facts(read(""), wanted, held, "nft failed with status 1"), NOTHING)
    still = "it is to be removed; the last pass failed: nft failed with status 1"
    assert {row.listens: (row.state, row.reason) for row in found} == {
        "all of 198.51.100.9": (State.REFUSED, "nft failed with status 1"),
        "route 2001:db8:1::/64": (State.ACTIVE, still),
        "tcp *:80": (State.ACTIVE, ""),
    }
    assert {row.listens: row.as_json()["reason_kinds"] for row in found} == {
        "all of 198.51.100.9": [],
        "route 2001:db8:1::/64": ["not-removed"],
        "tcp *:80": [],
    }


def test_what_is_to_be_removed_is_so_again_once_a_pass_succeeds_or_the_guest_is_back() -> None:
    held = Desired().having([WEB])
    waits = Facts(read(""), Desired(), held, "another program has held the lock")
    assert [row.kinds for row in rows(waits, NOTHING)] == [(HindranceKind.NOT_REMOVED,)]
    assert [row.reason for row in rows(replace(waits, wanted=held), NOTHING)] == [""]
    assert [row.reason for row in rows(replace(waits, wanted=None), NOTHING)] == [""]
    assert not rows(replace(waits, held=Desired(), failure=""), NOTHING)


def test_what_the_host_refuses_to_a_family_is_refused() -> None:
    state = Desired().having([WEB, WEB6])
    found = rows(Facts(read(""), state, state, refused={Family.IPV6: error("it is off")}), NOTHING)
    assert [(row.state, row.reason, row.leads) for row in found] == [
        (State.ACTIVE, "", "192.168.122.10:80"),
        (State.REFUSED, "it is off", "[2001:db8:122::10]:80"),
    ]


def test_a_host_that_does_not_forward_refuses_a_family() -> None:
    state = Desired().having([WEB, WEB6])
    found = rows(Facts(read(""), state, state), Readings(not_forwarding=frozenset({Family.IPV4})))
    assert [(row.state, row.reason) for row in found] == [
        (State.REFUSED, "IPv4 forwarding is off on this host"),
        (State.ACTIVE, ""),
    ]


def test_a_forward_on_an_address_of_another_machine_waits_for_it() -> None:
    shared = forward("tcp 198.51.100.77:80", "192.168.122.10:80")
    state = Desired().having([WEB, shared])
    elsewhere = {ip_address("198.51.100.77"): "02:00:00:00:00:77"}
    assert {row.listens: (row.state, row.reason) for row in rows(Facts(read(""), state, state), NOTHING)} == {
        "tcp *:80": (State.ACTIVE, ""),
        "tcp 198.51.100.77:80": (State.ACTIVE, ""),
    }
    found = rows(Facts(read(""), state, state), Readings(elsewhere=elsewhere))
    reason = "the machine at 02:00:00:00:00:77 has 198.51.100.77, and clients come here once this host has it"
    assert {row.listens: (row.state, row.reason) for row in found} == {
        "tcp *:80": (State.ACTIVE, ""),
        "tcp 198.51.100.77:80": (State.WAITING, reason),
    }


def test_a_guest_that_was_handed_over_is_at_the_machine_that_has_its_address() -> None:
    config = read('[[nat]]\ndomain = "mail"\npublic = "198.51.100.9"\n[[forward]]\ndomain = "mail"\nports = ["25"]\n')
    public, at = ip_address("198.51.100.9"), [config.nats[0].origin, config.forwards[0].origin]
    left = "it was handed over to another host"
    gone = tuple(Waiting(Owner("mail"), HANDED_OVER, origin, move=Move.GONE, public=public) for origin in at[:1])
    wanted = Desired(waiting=(*gone, Waiting(Owner("mail"), HANDED_OVER, at[1], move=Move.GONE)))
    assert wanted.handed_over == {public}
    assert [row.reason for row in rows(Facts(config, wanted), NOTHING)] == [left, left]
    found = rows(Facts(config, wanted), Readings(elsewhere={public: "02:00:00:00:00:77"}))
    assert [row.reason for row in found] == [left, f"{left}; the machine at 02:00:00:00:00:77 has 198.51.100.9 now"]


def test_what_is_not_there_may_also_be_told_as_waiting() -> None:
    wanted = Desired().having([WEB])
    found = rows(Facts(read(""), wanted, Desired(), "not there", State.WAITING), NOTHING)
    assert [(row.state, row.reason) for row in found] == [(State.WAITING, "not there")]


def test_figures_are_told_only_where_somebody_counts() -> None:
    since = datetime(2026, 3, 1, tzinfo=UTC)
    other = nat("198.51.100.10", "192.168.122.52")
    state = Desired().having([WEB, NAT, ROUTE, other])
    facts = Facts(read(""), state, state, since={WEB: since, ROUTE: since})
    found = {row.owner.name: row.usage for row in rows(facts, Readings({WEB: 3, NAT: 0}, {WEB: (1, 500)}))}
    assert found == {
        "web1": Usage(3, since, 1, 500),
        "post": Usage(0, None, 0, None),
        "lab": Usage(None, None, 0, None),
        "mail": Usage(None, None, 0, None),
    }
    assert all(row.usage.open is None for row in rows(facts, Readings({WEB: 3})))


def test_rows_are_in_one_order_whatever_the_set_says() -> None:
    many = [forward(f"tcp *:{port}", f"192.168.122.10:{port}") for port in (1000, 9, 80)]
    state = Desired().having(
        [*many, route("203.0.113.64/29", network="z"), nat("198.51.100.8", "192.168.122.9", domain="web1")]
    )
    assert [row.listens for row in rows(Facts(read(""), state, state), NOTHING)] == [
        "tcp *:9",
        "tcp *:80",
        "tcp *:1000",
        "all of 198.51.100.8",
        "route 203.0.113.64/29",
    ]
