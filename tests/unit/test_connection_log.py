"""Which connections of logged forwards are written, what of them, and how many at most."""

import asyncio
import logging
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from fwdaemon.audit import throttle
from fwdaemon.audit.throttle import LoggedConnection, Ration
from fwdaemon.config import parse
from fwdaemon.core.exposures import Forward
from fwdaemon.core.state import Desired
from fwdaemon.core.types import ConnectionLog as Cut
from fwdaemon.core.types import Protocol
from fwdaemon.errors import ConfigError
from fwdaemon.kernel.conntrack_listing import Event, EventKind, read_event
from fwdaemon.kernel.netlink import Message, attribute
from fwdaemon.resolve.flows import Flow
from fwdaemon.status.connection_log import ConnectionLog, Followed, OpenConnections
from tests.unit.forwards import address, forward

LABEL = 25
LABELS = (1 << LABEL).to_bytes(16, "little")
WEB = replace(forward("tcp *:8000", "192.168.122.10:80", domain="web"), log=Cut())
CLIENT, PUBLIC, GUEST = "203.0.113.9", "198.51.100.7", "192.168.122.10"


def flow(client: str = CLIENT, public: str = PUBLIC, port: int = 8000, guest: str = GUEST) -> Flow:
    ends = address(client), address(public), port, address(guest), 80
    return Flow(Protocol.TCP, *ends, address(client), 40000)


def event(kind: EventKind = EventKind.BEGAN, of: Flow | None = None, number: int = 1, **more: object) -> Event:
    labels = LABELS if kind is EventKind.BEGAN else b""
    return replace(Event(kind, of or flow(), 40000, number, labels), **more)  # type: ignore[arg-type]  # a test's words


def following(*forwards: Forward, most: int = 10) -> OpenConnections:
    found = OpenConnections(most)
    found.follow(Followed.of(Desired(forwards=frozenset(forwards), label=LABEL)))
    return found


def test_a_connection_is_logged_when_it_begins_and_when_it_ends() -> None:
    log = following(WEB)
    ends = (address(PUBLIC), 8000), (address(GUEST), 80)
    began = log.logged(event(), 100.0)
    assert began == LoggedConnection(False, WEB.owner, Protocol.TCP, address(CLIENT), 40000, *ends, 1)  # noqa: FBT003  ended
    ended = log.logged(event(EventKind.ENDED, size=1234), 102.5)
    assert ended == replace(began, ended=True, seconds=2.5, size=1234)


def test_one_of_tcp_took_until_it_was_closed() -> None:
    log = following(WEB)
    log.logged(event(), 100.0)
    assert log.logged(event(EventKind.CLOSED), 103.0) is None
    ended = log.logged(event(EventKind.ENDED), 223.0)
    assert ended is not None
    assert ended.seconds == 3.0


def test_what_is_none_of_ours_is_not_logged() -> None:
    log = following(WEB)
    untranslated = replace(flow(), destination=address(GUEST), destination_port=80)
    for other in (
        event(labels=b""),
        event(labels=(1 << 26).to_bytes(16, "little")),
        event(of=flow(port=8001)),
        event(of=flow(guest="192.168.122.11")),
        event(EventKind.ENDED, flow(port=8001)),
        event(EventKind.ENDED, untranslated),
        event(EventKind.CLOSED),
    ):
        assert log.logged(other, 1.0) is None, other


def test_a_forward_on_one_address_that_is_not_logged_goes_first() -> None:
    quiet = forward(f"tcp {PUBLIC}:8000", "192.168.122.10:80")
    log = following(WEB, quiet)
    assert log.logged(event(), 1.0) is None
    assert log.logged(event(of=flow(public="198.51.100.8")), 1.0) is not None


def test_one_that_began_before_ends_for_an_unknown_time() -> None:
    ended = following(WEB).logged(event(EventKind.ENDED), 5.0)
    assert ended is not None
    assert ended.seconds is None


def test_one_that_was_logged_ends_with_a_line_though_its_forward_has_gone() -> None:
    log = following(WEB)
    log.logged(event(), 1.0)
    log.follow(Followed.of(Desired(label=LABEL)))
    assert log.logged(event(number=2), 1.5) is None
    assert log.logged(event(EventKind.ENDED), 2.0) is not None


def test_no_more_are_remembered_than_fit() -> None:
    log = following(WEB, most=2)
    for number in (1, 2, 3):
        log.logged(event(number=number), float(number))
    told = [log.logged(event(EventKind.ENDED, number=number), 10.0) for number in (1, 2, 3)]
    assert [each.seconds for each in told if each] == [None, 8.0, 7.0]


@pytest.mark.parametrize(
    ("cut", "client", "expected"),
    [
        (Cut(), CLIENT, CLIENT),
        (Cut(24, 48), CLIENT, "203.0.113.0/24"),
        (Cut(24, 48), "2001:db8:9:1::9", "2001:db8:9::/48"),
        (Cut(0, 0), CLIENT, "0.0.0.0/0"),
    ],
)
def test_an_address_is_cut_and_its_port_with_it(cut: Cut, client: str, expected: str) -> None:
    guest, public = (GUEST, PUBLIC) if "." in client else ("2001:db8:122::10", "2001:db8::1")
    web = replace(forward("tcp *:8000", f"[{guest}]:80" if ":" in guest else f"{guest}:80"), log=cut)
    began = following(web).logged(event(of=flow(client, public, guest=guest)), 1.0)
    assert began is not None
    assert (str(began.client), began.client_port) == (expected, 40000 if expected == client else None)


def test_lines_have_a_ration() -> None:
    ration = Ration(10, 3)
    assert [ration.take(100.0) for _ in range(4)] == [True, True, True, False]
    assert [ration.take(100.15), ration.take(100.15)] == [True, False]


def logged(**changes: object) -> LoggedConnection:
    began = following(WEB).logged(event(), 1.0)
    assert began is not None
    return replace(began, **changes)  # type: ignore[arg-type]  # a test's own words


def test_lines_say_who_where_how_long_and_how_much(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "fwdaemon.audit")
    throttle.connection(logged())
    throttle.connection(logged(ended=True, seconds=2.54, size=123, number=0xAB))
    throttle.connection(logged(ended=True, client=Cut(24).cut(address(CLIENT)), client_port=None))
    throttle.unlogged(7, 60.2)
    where = "198.51.100.7:8000 -> 192.168.122.10:80"
    uncounted = "bytes are not counted (net.netfilter.nf_conntrack_acct)"
    assert [record.message for record in caplog.records] == [
        f"connected web: tcp 203.0.113.9:40000 -> {where}",
        f"disconnected web: tcp 203.0.113.9:40000 -> {where} (2.5 s, 123 bytes)",
        f"disconnected web: tcp 203.0.113.0/24 -> {where} (for an unknown time, {uncounted})",
        "7 begins and ends of connections were not logged in 60 s: there were too many",
    ]
    fields = caplog.records[1].journal  # type: ignore[attr-defined]  # what the audit adds
    del fields["MESSAGE_ID"]
    assert fields == {
        "PORTFWD_ACTION": "disconnected",
        "PORTFWD_DOMAIN": "web",
        "PORTFWD_CLIENT": "203.0.113.9",
        "PORTFWD_CLIENT_PORT": "40000",
        "PORTFWD_LISTEN": "tcp 198.51.100.7:8000",
        "PORTFWD_TARGET": "192.168.122.10:80",
        "PORTFWD_CONNECTION": "000000ab",
        "PORTFWD_SECONDS": "2.540",
        "PORTFWD_BYTES": "123",
    }


def test_a_message_cut_short_or_of_another_form_is_no_event() -> None:
    for body in (b"", b"\2\0\0\0", b"\2\0\0\0" + attribute(12, b"\0\0\0\1"), bytes(range(200))):
        assert read_event(Message(0x100, 0x600, 0, 0, body)) is None
        assert read_event(Message(0x102, 0, 0, 0, body)) is None


def test_nothing_runs_while_no_entry_has_a_log() -> None:
    log = ConnectionLog()
    log.follow(Desired(forwards=frozenset({replace(WEB, log=None)})))
    assert asyncio.run(log.close(1.0))
    assert log.lost == 0


ENTRY = '[[forward]]\ndomain = "web"\nports = ["8000:80"]\n'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", None),
        ("log = false\n", None),
        ("log = true\n", Cut()),
        ('log = true\nlog_anonymize = "/24"\n', Cut(24, 48)),
        ('log = true\nlog_anonymize = "/16,/56"\n', Cut(16, 56)),
        ('log = true\nlog_anonymize = "/32, /128"\n', Cut()),
    ],
)
def test_an_entry_says_whether_and_how(text: str, expected: Cut | None) -> None:
    (entry,) = parse({Path("portfwd.toml"): ENTRY + text}).forwards
    assert entry.log == expected


@pytest.mark.parametrize("cut", ["24", "/33", "/24,/129", "/24/48", "", "/-1", "/24,48", "/24,/48,/56"])
def test_another_cut_is_refused(cut: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse({Path("portfwd.toml"): f'{ENTRY}log = true\nlog_anonymize = "{cut}"\n'})
    assert 'no length of a prefix; write "/24", or one for each family, "/24,/48"' in str(caught.value)


def test_a_cut_without_a_log_is_refused() -> None:
    for more in ("", "log = false\n"):
        with pytest.raises(ConfigError) as caught:
            parse({Path("portfwd.toml"): f'{ENTRY}{more}log_anonymize = "/24"\n'})
        assert "is for entries with log = true; delete this line" in str(caught.value)


def test_an_address_stays_whole_by_default() -> None:
    assert Cut().cut(ip_address("2001:db8::9")) == ip_address("2001:db8::9")
