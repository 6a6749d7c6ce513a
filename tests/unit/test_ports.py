"""The short form of ports."""

from ipaddress import ip_address
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwdaemon.config.ports import LAST_PORT, PortSpec, parse_ports
from fwdaemon.core.text import GrammarError
from fwdaemon.core.types import Address, PortRange, Protocol

TCP, UDP, SCTP = (Protocol.TCP,), (Protocol.UDP,), (Protocol.SCTP,)


def spec(
    host: tuple[int, int],
    guest: tuple[int, int],
    protocols: tuple[Protocol, ...] = TCP,
    listen: str | None = None,
) -> PortSpec:
    return PortSpec(None if listen is None else ip_address(listen), PortRange(*host), PortRange(*guest), protocols)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("80", spec((80, 80), (80, 80))),
        ("1", spec((1, 1), (1, 1))),
        ("65535/sctp", spec((65535, 65535), (65535, 65535), SCTP)),
        ("2222:22", spec((2222, 2222), (22, 22))),
        ("5353:53/udp", spec((5353, 5353), (53, 53), UDP)),
        ("53:53/tcp+udp", spec((53, 53), (53, 53), TCP + UDP)),
        ("27015-27030/udp", spec((27015, 27030), (27015, 27030), UDP)),
        ("30000-30099:40000-40099", spec((30000, 30099), (40000, 40099))),
        ("80-80:90", spec((80, 80), (90, 90))),
        ("198.51.100.7:80", spec((80, 80), (80, 80), listen="198.51.100.7")),
        ("198.51.100.7:8443:443", spec((8443, 8443), (443, 443), listen="198.51.100.7")),
        ("[2001:db8::1]:80", spec((80, 80), (80, 80), listen="2001:db8::1")),
        ("[2001:db8::1]:80-81:90-91/udp", spec((80, 81), (90, 91), UDP, "2001:db8::1")),
    ],
)
def test_accepts(text: str, expected: PortSpec) -> None:
    assert parse_ports(text) == expected


HOST_REMEDY = 'write an address of this host such as "198.51.100.7"'
LOOPBACK_REMEDY = (
    'leave it out in an entry of its own with sources = ["127.0.0.1"], and write localhost = true in [daemon]'
)
PROTOCOL_REMEDY = "write /tcp, /udp, /sctp or /tcp+udp"
PORT_REMEDY = "write a number from 1 to 65535"


def every(sources: str, closed: str) -> str:
    remedy = (
        f'leave it out, and write sources = ["{sources}"] unless the entry has sources, so that {closed} stays closed'
    )
    return f"stands for every address; {remedy}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", '"" is empty; write a port, or remove it'),
        (" 80", '" 80" has white space in it; write "80"'),
        ("80\n", '"80\\n" has white space in it; write "80"'),
        ("٨٠", '"٨٠" has characters that no port string has; write plain digits, as in 2222:22'),
        ("80\x1b", '"80\\u001B" has characters that no port string has; write plain digits, as in 2222:22'),
        ("80:", '"80:" lacks a port beside ":"; write the host\'s port, ":" and the guest\'s'),
        (":80", '":80" lacks a port beside ":"; write the host\'s port, ":" and the guest\'s'),
        ("::80", '"::80" has nothing before "::"; write an IPv6 address as "[ADDRESS]:PORT"'),
        ("80-", '"80-" lacks a port beside "-"; write both ends, as in 8000-8099'),
        ("443-80", '"443-80" has a reversed range; write 80-443'),
        ("+80", f'"+80" is no port; {PORT_REMEDY}'),
        ("http", f'"http" is no port; {PORT_REMEDY} in quotes'),
        ("3-2-1", f'"3-2-1": "2-1" is no port; {PORT_REMEDY}'),
        ("udp", '"udp" is no port; write the protocol behind one, as in "53/udp"'),
        (
            "53:udp:53/tcp",
            '"53:udp:53/tcp" has protocols between its ports; write one at the end, as in "53:53/udp"',
        ),
        ("0", f'"0" is out of range; {PORT_REMEDY}'),
        ("65536", f'"65536" is out of range; {PORT_REMEDY}'),
        ("080", '"080" starts with 0; write 80'),
        ("00", f'"00" is out of range; {PORT_REMEDY}'),
        ("0065536", f'"0065536" is out of range; {PORT_REMEDY}'),
        (
            "80-89:90-94",
            (
                '"80-89:90-94" is 10 wide on the host (80-89) but 5 wide in the guest (90-94); write equal widths,'
                ' "80-84:90-94"'
            ),
        ),
        (
            "8000-8010:80",
            '"8000-8010:80" leads 11 ports to the one port 80; write one host port, "8000:80"',
        ),
        (
            "1-10:65530",
            '"1-10:65530" leads 10 ports to the one port 65530; write one host port, "1:65530"',
        ),
        ("80/", f'"80/" names no protocol after "/"; {PROTOCOL_REMEDY}'),
        ("80/TCP", '"80/TCP" writes the protocol in another way; write in lower case, /tcp'),
        ("80/tcp,udp", '"80/tcp,udp" writes the protocol in another way; write /tcp+udp'),
        ("80/udp+tcp", '"80/udp+tcp" writes the protocol in another way; write /tcp+udp'),
        ("80/icmp", f'"80/icmp" names the protocol "icmp", which is not supported; {PROTOCOL_REMEDY}'),
        ("[2001:db8::1:80", '"[2001:db8::1:80" has brackets in the wrong places; write "[ADDRESS]:PORT" for IPv6'),
        ("[2001:db8::1]", '"[2001:db8::1]" names no port; write it after the address, "[ADDRESS]:PORT"'),
        (
            "2001:db8::1:80",
            '"2001:db8::1:80" has too many colons; write an IPv6 address in brackets, "[ADDRESS]:PORT"',
        ),
        (
            "[192.0.2.1]:80",
            '"[192.0.2.1]:80" has brackets without an IPv6 address in them; write "192.0.2.1:80"',
        ),
        ("192.0.2.1:", '"192.0.2.1:" names no port; write it after the address, "ADDRESS:PORT"'),
        ("eth0:80:80", f'"eth0" is not an IP address; {HOST_REMEDY}'),
        ("0.0.0.0:80", f'"0.0.0.0" {every("0.0.0.0/0", "IPv6")}'),
        ("[::]:80", f'"::" {every("::/0", "IPv4")}'),
        ("localhost:80", f'"localhost" is for this host alone; {LOOPBACK_REMEDY}'),
        ("127.0.0.1:8080:80", f'"127.0.0.1" is for this host alone; {LOOPBACK_REMEDY}'),
        ("[::1]:80", f'"::1" is for this host alone; {LOOPBACK_REMEDY.replace("127.0.0.1", "::1")}'),
        ("224.0.0.1:80", f'"224.0.0.1" is a multicast address, which belongs to no single host; {HOST_REMEDY}'),
        (
            "255.255.255.255:80",
            f'"255.255.255.255" is the broadcast address, which belongs to no single host; {HOST_REMEDY}',
        ),
        ("169.254.1.1:80", f'"169.254.1.1" is a link-local address, which is known on one link only; {HOST_REMEDY}'),
        (
            "[fe80::1%eth0]:80",
            f'"fe80::1%eth0" names an interface after "%", which no address here can have; {HOST_REMEDY}',
        ),
        ("[::ffff:192.0.2.1]:80", '"::ffff:192.0.2.1" is IPv4 mapped into IPv6; write "192.0.2.1"'),
    ],
)
def test_refuses_with_a_remedy(text: str, message: str) -> None:
    with pytest.raises(GrammarError) as refused:
        parse_ports(text)
    assert str(refused.value) == message


def listening_addresses() -> st.SearchStrategy[Address]:
    first = int(ip_address("2001:db8::"))
    return st.one_of(
        st.integers(int(ip_address("198.51.100.0")), int(ip_address("198.51.100.255"))).map(ip_address),
        st.integers(first, first + (1 << 96) - 1).map(ip_address),
    )


@st.composite
def specs(draw: st.DrawFn) -> PortSpec:
    width = draw(st.integers(1, LAST_PORT))
    starts = st.integers(1, LAST_PORT - width + 1)
    host, guest = (PortRange(first, first + width - 1) for first in (draw(starts), draw(starts)))
    protocols = draw(st.sampled_from([TCP, UDP, SCTP, TCP + UDP]))
    return PortSpec(draw(st.none() | listening_addresses()), host, guest, protocols)


@given(specs())
def test_what_is_written_reads_the_same(written: PortSpec) -> None:
    assert parse_ports(str(written)) == written


@given(st.text() | st.text("0123456789:-/[].tcpud+%", max_size=24))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        ports = parse_ports(text)
    except GrammarError as error:
        said = str(error)
    else:
        said = str(ports)
        host = ports.host or ports.guest  # one that is assigned is for one port
        assert host.width == ports.guest.width
        assert 1 <= host.first <= host.last <= LAST_PORT
    assert said.isprintable()


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("auto:22", "auto:22/tcp"),
        ("auto:5353/udp", "auto:5353/udp"),
        ("auto:80/tcp+udp", "auto:80/tcp+udp"),
        ("198.51.100.7:auto:22", "198.51.100.7:auto:22/tcp"),
        ("[2001:db8::7]:auto:22/sctp", "[2001:db8::7]:auto:22/sctp"),
    ],
)
def test_an_automatic_port(text: str, read: str) -> None:
    assert str(parse_ports(text)) == read
    assert parse_ports(text).host is None
    assert str(parse_ports(read)) == read


ANY: Final = 'write "auto:" and one port of the guest in each string, as in "auto:22"'
WITH_ADDRESS: Final = 'write an address of the host before "auto:" and one port, as in "198.51.100.7:auto:22"'


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        *((text, ANY) for text in ("auto", "auto:", "8080:auto:22", "auto:22-24", "auto:22:22", "auto:0", "auto:x")),
        *((text, WITH_ADDRESS) for text in ("198.51.100.7:auto", "localhost:auto:22", "198.51.100.300:auto:22")),
        ("AUTO:22/udp", 'write "auto:22/udp"'),
        ("22:auto", 'write "auto:22"'),
        ("auto: 22", 'write "auto:22"'),
        ("198.51.100.7 : auto:22", 'write "198.51.100.7:auto:22"'),
    ],
)
def test_what_is_no_automatic_port_opens_no_more_than_it_says(text: str, remedy: str) -> None:
    with pytest.raises(GrammarError) as refused:
        parse_ports(text)
    assert str(refused.value) == f'"{text}" is no automatic port; {remedy}'
