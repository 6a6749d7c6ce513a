"""Each remedy for ports, followed to the letter, makes a configuration that opens no more than its text said."""

import pytest

from tests.unit.remedies import ENTRY_80, OPENS_80, WEB, Case, follow, ports
from tests.unit.test_config_support import problems_of

LOOPBACK = (
    'is for this host alone; leave it out in an entry of its own with sources = ["127.0.0.1"], and write localhost'
)
SCTP = "is for this host alone, which nothing serves with SCTP; remove"
ONE_PORT, ONE_HOST_PORT = "ports to the one port", "write one host port"
COLONS = f"is no address and two ports, and no range leads to one port; {ONE_HOST_PORT}"
PORTS = [
    Case(
        f'{WEB}ports = ["127.0.0.1:8080:80"]\n',
        f'3: forward 1: ports[1]: "127.0.0.1" {LOOPBACK} = true in [daemon]',
        f'[daemon]\nlocalhost = true\n{WEB}ports = ["8080:80"]\nsources = ["127.0.0.1"]\n',
        "*:8080/tcp -> web1:80 from 127.0.0.1/32 IPv4",
    ),
    *(
        Case(
            f'{WEB}ports = ["{bad}", "80"]\n', f'3: forward 1: ports[1]: "{address}" {SCTP} "{bad}"', ENTRY_80, OPENS_80
        )
        for address, bad in (("127.0.0.1", "127.0.0.1:5000:5000/sctp"), ("::1", "[::1]:5000/sctp"))
    ),
    ports(
        '"80 443"',
        '"80 443" is several in one string; write "80", "443"',
        '"80", "443"',
        "*:80/tcp -> web1:80; *:443/tcp -> web1:443",
    ),
    ports(
        '"80, 53/udp"',
        '"80, 53/udp" is several in one string; write "80", "53/udp"',
        '"80", "53/udp"',
        "*:80/tcp -> web1:80; *:53/udp -> web1:53",
    ),
    ports('"8080 : 80"', '"8080 : 80" has white space in it; write "8080:80"', '"8080:80"', "*:8080/tcp -> web1:80"),
    *(
        ports(f'"{bad}"', f'"{bad}" {said}, "{good}"', f'"{good}"', opened)
        for bad, said, good, opened in (
            ("80-443:8080", f"leads 364 {ONE_PORT} 8080; {ONE_HOST_PORT}", "80:8080", "*:80/tcp -> web1:8080"),
            ("1-65535:1", f"leads 65535 {ONE_PORT} 1; {ONE_HOST_PORT}", "1:1", "*:1/tcp -> web1:1"),
            ("80:443:8080/udp", COLONS, "80:8080/udp", "*:80/udp -> web1:8080"),
            ("8000:8010:9000", COLONS, "8000:9000", "*:8000/tcp -> web1:9000"),
            ("8000:8010:9000:9000", COLONS, "8000:9000", "*:8000/tcp -> web1:9000"),
            (
                "8000:8010:9000:9010",
                "is no address and two ports, and a range has a dash; write dashes",
                "8000-8010:9000-9010",
                "*:8000-8010/tcp -> web1:9000-9010",
            ),
            (
                "80:8080-8443/sctp",
                "is 1 wide on the host (80) but 364 wide in the guest (8080-8443); write equal widths",
                "80:8080/sctp",
                "*:80/sctp -> web1:8080",
            ),
            (
                "80-80:8080-8443",
                "is 1 wide on the host (80) but 364 wide in the guest (8080-8443); write equal widths",
                "80:8080",
                "*:80/tcp -> web1:8080",
            ),
            (
                "198.51.100.7:80-81:8080-8443",
                "is 2 wide on the host (80-81) but 364 wide in the guest (8080-8443); write equal widths",
                "198.51.100.7:80-81:8080-8081",
                "198.51.100.7:80-81/tcp -> web1:8080-8081",
            ),
        )
    ),
    ports(
        '"53:53:udp"',
        '"53:53:udp" has the protocol in another place; write "53:53/udp"',
        '"53:53/udp"',
        "*:53/udp -> web1:53",
    ),
    *(
        ports(f'"{bad}"', f'"{bad}" has the protocol in another place; write "{good}"', f'"{good}"', opened)
        for bad, good, opened in (
            ("53:udp:53", "53:53/udp", "*:53/udp -> web1:53"),
            ("80:UDP:53", "80:53/udp", "*:80/udp -> web1:53"),
            ("53/udp:53", "53:53/udp", "*:53/udp -> web1:53"),
            ("udp:53:53/udp", "53:53/udp", "*:53/udp -> web1:53"),
            ("80/tcp:8080/tcp", "80:8080/tcp", "*:80/tcp -> web1:8080"),
            ("53:udp,tcp:53", "53:53/tcp+udp", "*:53/tcp -> web1:53; *:53/udp -> web1:53"),
            ("198.51.100.7/udp:53:53", "198.51.100.7:53:53/udp", "198.51.100.7:53/udp -> web1:53"),
            ("[2001:db8::7]/udp:53", "[2001:db8::7]:53/udp", "2001:db8::7:53/udp -> web1:53"),
        )
    ),
    ports(
        '"53 : udp : 53"',
        '"53 : udp : 53" has white space in it; write "53:53/udp"',
        '"53:53/udp"',
        "*:53/udp -> web1:53",
    ),
    *(
        ports(f'"{bad}"', f'"{bad}" {said}; write "{good}"', f'"{good}"', opened)
        for bad, said, good, opened in (
            ("80\u201390", 'has another sign where a range has "-"', "80-90", "*:80-90/tcp -> web1:80-90"),
            ("80 \u2014 90", 'has another sign where a range has "-"', "80-90", "*:80-90/tcp -> web1:80-90"),
            (
                "8000-8010-9000/udp",
                "has more than two ends in a range",
                "8000-8010/udp",
                "*:8000-8010/udp -> web1:8000-8010",
            ),
            (
                "8000-8010-9000-9010",
                "has more than two ends in a range",
                "8000-8010:9000-9010",
                "*:8000-8010/tcp -> web1:9000-9010",
            ),
        )
    ),
    ports('"53 udp"', '"53 udp" has white space in it; write "53/udp"', '"53/udp"', "*:53/udp -> web1:53"),
    ports('"udp:53"', '"udp:53" has the protocol in another place; write "53/udp"', '"53/udp"', "*:53/udp -> web1:53"),
    ports('"53UDP"', '"53UDP" has the protocol in another place; write "53/udp"', '"53/udp"', "*:53/udp -> web1:53"),
    ports(
        '"[198.51.100.7]:443"',
        '"[198.51.100.7]:443" has brackets without an IPv6 address in them; write "198.51.100.7:443"',
        '"198.51.100.7:443"',
        "198.51.100.7:443/tcp -> web1:443",
    ),
    *(
        ports(f'"{bad}"', f'"{bad}" has dots where a range has a dash; write "{good}"', f'"{good}"', opened)
        for bad, good, opened in (
            ("80..90", "80-90", "*:80-90/tcp -> web1:80-90"),
            ("8000...8001:9000..9001/udp", "8000-8001:9000-9001/udp", "*:8000-8001/udp -> web1:9000-9001"),
            ("198.51.100.7:80..81", "198.51.100.7:80-81", "198.51.100.7:80-81/tcp -> web1:80-81"),
        )
    ),
    *(
        ports(
            f'"{bad}"',
            f'"{bad}" has a prefix length, which no listening address has; write "{good}"',
            f'"{good}"',
            f"{address}:80/tcp -> web1:80",
        )
        for bad, good, address in (
            ("198.51.100.7/24:80:80", "198.51.100.7:80:80", "198.51.100.7"),
            ("198.51.100.7/32:80", "198.51.100.7:80", "198.51.100.7"),
            ("[2001:db8::7]/64:80:80", "[2001:db8::7]:80:80", "2001:db8::7"),
            ("[2001:db8::7/64]:80", "[2001:db8::7]:80", "2001:db8::7"),
        )
    ),
    *(
        Case(
            f'{WEB}ports = "{bad}"\n',
            f'3: forward 1: ports: must be an array of strings, not "{bad}"; write ["80", "443"]',
            f'{WEB}ports = ["80", "443"]\n',
            "*:80/tcp -> web1:80; *:443/tcp -> web1:443",
        )
        for bad in ("80, 443", "80 443", "80;443", "80,443,80")
    ),
    ports("80", 'must be a string, not 80; write "80"', '"80"', "*:80/tcp -> web1:80"),
    Case(
        f'{WEB}ports = ["80",\n"80"]\n',
        '4: forward 1: ports[2]: "80" is already named on line 3; remove one of the two',
        f'{WEB}ports = ["80"]\n',
        "*:80/tcp -> web1:80",
    ),
    Case(
        f'{WEB}ports = ["80", "80-81"]\n',
        (
            '3: domain "web1": *:80/tcp is already claimed at /etc/portfwd.toml:3 for domain "web1";'
            " both lead to the same, so take it out of one of the two"
        ),
        f'{WEB}ports = ["80", "81"]\n',
        "*:80/tcp -> web1:80; *:81/tcp -> web1:81",
    ),
    Case(
        f'{WEB}ports = ["80", "80:81"]\n',
        (
            '3: domain "web1": *:80/tcp is already claimed at /etc/portfwd.toml:3 for domain "web1";'
            " use another port of the host in one of the two"
        ),
        f'{WEB}ports = ["80", "8081:81"]\n',
        "*:80/tcp -> web1:80; *:8081/tcp -> web1:81",
    ),
]


@pytest.mark.parametrize("case", PORTS, ids=lambda case: case.said[:70])
def test_what_is_said_is_right_when_followed(case: Case) -> None:
    follow(case)


@pytest.mark.parametrize("count", [65_536, 100_000])
def test_more_ports_than_there_are_is_one_message(count: int) -> None:
    text = WEB + "ports = [" + '"80", ' * count + "]\n"
    assert problems_of(text) == [
        f"portfwd.toml:3: forward 1: ports: has {count:,} elements, more than 65,535; write fewer, and wider ones"
    ]
