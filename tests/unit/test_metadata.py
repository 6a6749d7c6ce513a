"""What domains ask for in their own definitions: only ours is read, with the grammar of the file, and bounded."""

from typing import Final
from uuid import UUID
from xml.sax.saxutils import quoteattr

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwdaemon.config.metadata import ATTRIBUTES, Reading, read_metadata
from fwdaemon.core.inventory import Element, Metadata
from fwdaemon.hypervisor.xml import NAMESPACE, parse_domain
from tests.unit.schemas import matches

WEB: Final = UUID("00000000-0000-0000-0000-000000000001")
INTERFACE: Final = "<interface><mac address='52:54:00:00:00:01'/><source network='default'/></interface>"
LARGE: Final = 70_000


def domain(metadata: str) -> str:
    return f"<domain><name>web</name><metadata>{metadata}</metadata><devices>{INTERFACE}</devices></domain>"


def ours(elements: str, attributes: str = "") -> str:
    return f"<p:forwards xmlns:p='{NAMESPACE}'{attributes}>{elements}</p:forwards>"


def asked(metadata: str) -> Metadata | None:
    """Read what a domain asks for; whatever that is, its interfaces are known."""
    devices = parse_domain(domain(metadata))
    assert [interface.mac for interface in devices.interfaces] == ["52:54:00:00:00:01"]
    return devices.metadata


def readings(metadata: str) -> tuple[Reading, ...]:
    found = asked(metadata)
    assert found is not None
    return read_metadata(found, "web", WEB, ("office", "bad"))


def problems(elements: str) -> list[str]:
    return [problem for reading in readings(ours(elements)) for problem in reading.problems]


def test_elements_are_entries_of_that_domain() -> None:
    first, second = readings(
        ours(
            "<p:forward ports='8080:80 53/tcp+udp' listen='198.51.100.7' network='default'/><p:nat public='192.0.2.8'/>"
        )
    )
    (forward,), (nat,) = first.entries, second.entries
    assert [str(claim) for claim, _ in forward.claims()] == [
        *("tcp 198.51.100.7:8080", "tcp 198.51.100.7:53", "udp 198.51.100.7:53")
    ]
    assert forward.domain == nat.domain == str(WEB)
    assert forward.owner.name == "web"
    assert (forward.network, str(nat.claims().__next__()[0])) == ("default", "all of 192.0.2.8")
    assert [str(forward.origin), str(nat.origin)] == [f"domain web, metadata: {what} 1" for what in ("forward", "nat")]
    assert forward.origin != nat.origin


@pytest.mark.parametrize(
    ("element", "told"),
    [
        ("<p:forward ports='80 80x'/>", 'forward 1: ports[2]: "80x" is no port; write a number from 1 to 65535'),
        ("<p:forward/>", 'forward 1: has no ports; write ports = ["…"] with those that are to be open'),
        ("<p:nat public='192.0.2.8' ports='80'/>", 'nat 1: unknown attribute "ports"; write one of'),
        (
            "<p:forward ports='80' masquerade='true'/>",
            'forward 1: "masquerade" is a key of the host\'s files only; leave it out',
        ),
        ("<p:forward ports='80' domain='db'/>", 'forward 1: "domain" is a key of the host\'s files only; leave it out'),
        ("<p:forward p:ports='80'/>", "forward 1: attribute "),
        ("<p:forward ports='80'><p:x/></p:forward>", 'forward 1: has "x" inside; write an element without any'),
        ("<p:forward ports='80'>hello</p:forward>", "forward 1: has text inside; write an element without any"),
        ("<p:route network='default'/>", 'forwards: unknown element "route"; write one of'),
        ("<forward ports='80'/>", 'forwards: "forward" is of another namespace; write the prefix of <forwards>'),
        ("<o:forward xmlns:o='urn:o' ports='80'/>", 'forwards: "{urn:o}forward" is of another namespace'),
        ("<p:forward ports='80' network='a' mac='52:54:00:00:00:01'/>", "forward 1: mac: picks the guest's interface"),
        ("<p:forward ports='80' sources=''/>", "forward 1: sources: is empty"),
        ("<p:forward ports='auto:1-2'/>", "forward 1: ports[1]: "),
        ("<p:nat public='127.0.0.1'/>", "nat 1: public: "),
        ("<p:forward ports='80' interface='eth0; flush'/>", "forward 1: interface: "),
    ],
)
def test_an_element_that_is_wrong_opens_nothing_and_says_why(element: str, told: str) -> None:
    wrong, right = readings(ours(f"{element}<p:forward ports='443'/>"))
    assert len(wrong.problems) == 1
    assert wrong.problems[0].startswith(told)
    assert not wrong.entries
    assert right.entries
    assert not right.problems


@pytest.mark.parametrize(
    ("metadata", "fault"),
    [
        (ours("<p:forward ports='80'/>" * 257), "has more than 256 elements"),
        (ours(f"<p:forward ports='{'80 ' * 30_000}'/>"), "is larger than 64 KiB"),
        (ours(f"<p:forward ports='80'>{'x' * LARGE}</p:forward>"), "is larger than 64 KiB"),
        (ours("<p:forward ports='80'/>" + "<p:a>" * 9_000 + "</p:a>" * 9_000), "is larger than 64 KiB"),
        (ours("<p:forward ports='80'/>" + "<p:a>" * 200 + "</p:a>" * 200), ""),
        (ours("<p:x y='" + "z" * LARGE + "'/>"), "is larger than 64 KiB"),
    ],
)
def test_what_is_too_much_is_not_read(metadata: str, fault: str) -> None:
    found = asked(metadata)
    assert found is not None
    assert (found.fault, bool(found.elements)) == (fault, not fault)


def test_ports_on_many_addresses_are_so_many_and_no_more_over_all_elements() -> None:
    def of(ports: int, addresses: int) -> str:
        listen = " ".join(f"198.51.100.{n}" for n in range(1, addresses + 1))
        return f"<p:forward ports='{' '.join(f'{n}/tcp+udp' for n in range(1, ports + 1))}' listen='{listen}'/>"

    read = readings(ours(of(10, 10) + of(4, 8) + of(2, 2)))
    assert [sum(1 for entry in item.entries for _ in entry.every_claim()) for item in read] == [200, 0, 8]
    (told,) = read[1].problems
    assert told.startswith(
        "forward 2: the ports on each address of listen make more than 256 together with what stands"
    )
    (far,) = readings(ours(of(100, 100)))
    assert not far.entries


def test_more_items_than_may_be_are_not_read() -> None:
    ports = " ".join(map(str, range(1, 258)))
    (only,) = readings(ours(f"<p:forward ports='{ports}'/>"))
    assert not only.entries
    assert only.problems[0].startswith("lists more than 256 ports")


@pytest.mark.parametrize(
    "metadata",
    [
        "",
        "<x xmlns='urn:other'/>",
        "<o:forwards xmlns:o='urn:kvm-portfwd:2'><o:forward ports='80'/></o:forwards>",
        f"<x xmlns='urn:other'><p:forwards xmlns:p='{NAMESPACE}'><p:forward ports='80'/></p:forwards></x>",
        f"<!-- {ours('')} -->" + "<y xmlns='urn:y'>" * 200 + "</y>" * 200,
        "<y xmlns='urn:y'/>" * 200_000,
    ],
)
def test_what_others_keep_there_is_nothing_to_us(metadata: str) -> None:
    assert asked(metadata) is None


def test_it_is_found_among_what_others_keep_and_the_first_counts() -> None:
    other = "<metadata xmlns='urn:o'><devices/></metadata>" * 2
    found = asked(other + ours("<p:forward ports='80'/>") + other + ours("<p:forward ports='81'/>"))
    assert found is not None
    assert [element.attributes for element in found.elements] == [(("ports", "80"),)]


def test_attributes_of_the_whole_are_told() -> None:
    (wrong,) = readings(ours("", " ports='80'"))
    assert wrong.problems == ('forwards: unknown attribute "ports"; write it in <forward> or <nat>',)


@given(st.dictionaries(st.sampled_from(["ports", "sources", "listen", "mac", "x"]), st.text(), max_size=4))
def test_no_text_ends_in_a_traceback_or_in_a_line_that_is_not_one(attributes: dict[str, str]) -> None:
    found = read_metadata(Metadata((Element("forward", tuple(attributes.items())),)), "we\nb", WEB)
    for reading in found:
        assert bool(reading.entries) != bool(reading.problems)
        assert all(text.isprintable() for text in reading.problems)
        assert str(reading.origin) == "domain we\\nb, metadata: forward 1"


def valid(elements: str) -> bool:
    return matches(ours(elements).encode())


_WORDS: Final = st.lists(
    st.sampled_from(
        [
            *("80", "080", "8080:80", "1-2:3-4", "80/udp", "80/TCP", "auto:22", "auto:22/tcp+udp", "auto:1-2", "0"),
            *("198.51.100.7", "198.51.100.7:80:80", "[2001:db8::7]:80", "2001:db8::7", "203.0.113.0/24", "::/0"),
            *("set:office", "set:x y", "set:-", "eth0", "-x", "a:b", "default", "52:54:00:00:00:01", "é", "*", "+"),
            *("30/minute", "30/second", "0/day", "1/hours", "20", "65536", "::", "0.0.0.0/0", "203.0.113.9/24"),
        ]
    ),
    max_size=3,
).map(" ".join)
_KEYS: Final = st.sampled_from(sorted(set().union(*ATTRIBUTES.values())))


@given(st.sampled_from(sorted(ATTRIBUTES)), st.dictionaries(_KEYS, _WORDS, max_size=3))
def test_the_schema_takes_whatever_opens_something(name: str, attributes: dict[str, str]) -> None:
    required = {"forward": ("ports", "80"), "nat": ("public", "192.0.2.8")}
    written = dict([required[name]]) | attributes
    element = f"<p:{name} {' '.join(f'{key}={quoteattr(value)}' for key, value in written.items())}/>"
    assert valid(element) or problems(element)


@pytest.mark.parametrize(
    "elements",
    [
        "",
        "<p:forward ports='80'/>",
        "<p:forward ports='8080:80 [2001:db8::1]:1-2:3-4/tcp+udp' sources='203.0.113.0/24 2001:db8::/32'/>",
        "<p:forward ports='80' listen='198.51.100.7 2001:db8::7' interface='eth0' network='my net'/>",
        "<p:forward ports='80' address='192.168.122.5' mac='52-54-00-AB-CD-EF'/><p:nat public='192.0.2.8'/>",
        "<p:forward ports='auto:22 198.51.100.7:auto:53/tcp+udp'/>",
        "<p:nat public='2001:db8::8' assign='eth0' network='default' address='2001:db8:1::2'/>",
        "<p:forward ports='80' deny='192.0.2.7 set:bad' sources='set:office' rate='30/minute' max_open='20'/>",
        "<p:nat public='192.0.2.8' deny='set:bad 2001:db8::/32'/>",
    ],
)
def test_the_schema_takes_what_is_right(elements: str) -> None:
    assert valid(elements)
    assert not problems(elements)


@pytest.mark.parametrize(
    "elements",
    [
        "<p:forward/>",
        "<p:forward ports=''/>",
        "<p:forward ports='80,81'/>",
        "<p:forward ports='080'/>",
        "<p:forward ports='auto'/>",
        "<p:forward ports='auto:22-23'/>",
        "<p:forward ports='80' sources=''/>",
        "<p:forward ports='80' domain='x'/>",
        "<p:forward ports='80' masquerade='true'/>",
        "<p:forward ports='80' network='a' mac='52:54:00:00:00:01'/>",
        "<p:forward ports='80' network=''/>",
        "<p:forward ports='80' interface='a b'/>",
        "<p:forward ports='80' rate='30/m'/>",
        "<p:forward ports='80' rate='0/minute'/>",
        "<p:forward ports='80' max_open='0'/>",
        "<p:forward ports='80' max_open='many'/>",
        "<p:forward ports='80' deny=''/>",
        "<p:forward ports='80' deny='set:'/>",
        "<p:forward ports='80' deny='eth0'/>",
        "<p:nat public='192.0.2.8' rate='30/minute'/>",
        "<p:forward ports='80'>x</p:forward>",
        "<p:forward ports='80'><p:nat public='192.0.2.8'/></p:forward>",
        "<p:nat/>",
        "<p:nat public='192.0.2.8 192.0.2.9'/>",
        "<p:nat public='192.0.2.8' ports='80'/>",
        "<p:route network='a' addresses='192.0.2.0/24'/>",
        "<forward ports='80'/>",
    ],
)
def test_the_schema_refuses_what_is_wrong(elements: str) -> None:
    assert not valid(elements)
    assert problems(elements)
