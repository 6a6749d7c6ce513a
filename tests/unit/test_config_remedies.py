"""Each remedy, followed to the letter, makes a configuration that is right and opens no more than its text said."""

import json

import pytest

from tests.unit.remedies import ENTRY_80, OPENS_80, WEB, Case, follow, key, opens, ports
from tests.unit.test_config_support import problems_of, read

FLAGS = [
    Case(
        f"[daemon]\n{name} = {bad}\n",
        f"2: daemon: {name}: must be true or false, not {bad}; write {good} without quotes",
        f"[daemon]\n{name} = {good}\n",
        "",
    )
    for name in ("ip_forward", "localhost")
    for bad, good in (('"no"', "false"), ('"off"', "false"), ("0", "false"), ('"Yes"', "true"), ("1", "true"))
]
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
FORMER = [
    Case(
        f"[daemon]\n{name} = 1\n",
        (
            f'2: daemon: unknown key "{name}"; write one of backend, behind, gates, ip_forward, label, libvirt,'
            " localhost, on_stop, resync, uplinks"
        ),
        "[daemon]\nlabel = 1\n",
        "",
    )
    for name in ("x", "mrk", "marks")
]
KEYS = [
    key(
        'listen = "[2001:db8::7]"',
        'listen: "[2001:db8::7]" has brackets, which stand beside a port only; write "2001:db8::7"',
        'listen = "2001:db8::7"',
        "2001:db8::7:80/tcp -> web1:80",
    ),
    key(
        'listen = "198.51.100.7:80"',
        'listen: "198.51.100.7:80" names a port, which no address has; write "198.51.100.7", and the port in ports',
        'listen = "198.51.100.7"',
        "198.51.100.7:80/tcp -> web1:80",
    ),
    key(
        'sources = ["[2001:db8:9::]/48"]',
        'sources[1]: "[2001:db8:9::]/48" has brackets, which stand beside a port only; write "2001:db8:9::/48"',
        'sources = ["2001:db8:9::/48"]',
        "*:80/tcp -> web1:80 from 2001:db8:9::/48 IPv6",
    ),
    key(
        'sources = "192.0.2.0/28, 192.0.2.99"',
        'sources: "192.0.2.0/28, 192.0.2.99" is several in one string; write "192.0.2.0/28", "192.0.2.99" in an array',
        'sources = ["192.0.2.0/28", "192.0.2.99"]',
        "*:80/tcp -> web1:80 from 192.0.2.0/28,192.0.2.99/32 IPv4",
    ),
    key(
        'listen = "198.51.100.7 2001:db8::7"',
        'listen: "198.51.100.7 2001:db8::7" is several in one string; write "198.51.100.7", "2001:db8::7" in an array',
        'listen = ["198.51.100.7", "2001:db8::7"]',
        "198.51.100.7,2001:db8::7:80/tcp -> web1:80",
    ),
    key(
        'interface = "any"',
        'interface: "any" is no interface; leave the key out for packets from any',
        "",
        "*:80/tcp -> web1:80",
    ),
    key(
        'network = "default "',
        'network: "default " has blanks at its ends, or invisible characters; write "default"',
        'network = "default"',
        OPENS_80,
    ),
    key("domain = 101", 'domain: must be a string, not 101; write "101"', 'domain = "101"', "*:80/tcp -> 101:80"),
    key(
        'domain = ["web1"]',
        'domain: must be a string, not an array; write "web1"',
        'domain = "web1"',
        "*:80/tcp -> web1:80",
    ),
    key("domain = true", 'domain: must be a string, not true; write "true"', 'domain = "true"', "*:80/tcp -> true:80"),
    *(
        key(
            f'domain = "{bad}"',
            (
                f'domain: "{shown}" has blanks at its ends, or invisible characters; write "web1", or its UUID'
                " if virsh really shows that"
            ),
            'domain = "web1"',
            "*:80/tcp -> web1:80",
        )
        for bad, shown in (
            (" web1", " web1"),
            ("web1\\t", "web1\\t"),
            ("web\\u200B1", "web\\u200B1"),
            ("\\uFEFFweb1", "\\uFEFFweb1"),
            ("web1\\u00A0", "web1\\u00A0"),
            ("web1\\u0007", "web1\\u0007"),
            ("web1\\u200D", "web1\\u200D"),
            *(
                (f"we{code}b1", f"we{code}b1")
                for code in ("\\u200D", "\\u200E", "\\u202E", "\\u2063", "\\u180E", "\\U000E0041")
            ),
            *((f"we{chr(code)}b1", f"we{chr(code)}b1") for code in (0x34F, 0xFE0F, 0x3164)),
        )
    ),
    *(
        key(
            f'domain = "{bad}"',
            f'domain: "{bad}" {what}; write one entry for each domain, by its UUID if its name really {so}',
            'domain = "ci-1"',
            "*:80/tcp -> ci-1:80",
        )
        for what, so, names in (
            (
                "looks like a pattern, and patterns are not supported",
                "has such a character",
                ("ci-*", "*", "ci-?", "ci-[0-9]", "ci-[12]", "ci-[!2]", "ci-[^2]", "ci-{1..2}", "ci-{1,2}"),
            ),
            ("looks like a pattern, and patterns are not supported", "has such a character", ("^ci-1$", "(ci-1|ci-2)")),
            (
                "looks like a list of names",
                "has such a character",
                ("ci-1,ci-2", "ci-1; ci-2", "101, 102", "ci-1|ci-2"),
            ),
            ("names no single domain", "is that", ("all", "Any")),
        )
        for bad in names
    ),
    *(
        key(
            f'domain = "{bad}"',
            (
                f'domain: "{bad}" has blanks at its ends, or invisible characters; write "web 1", or its UUID'
                " if virsh really shows that"
            ),
            'domain = "web 1"',
            "*:80/tcp -> web 1:80",
        )
        for bad in ("web\\u20031", "web\\u30001", "web\\u00A01", "web\\t1", f"web{chr(0x2800)}1")
    ),
    *(
        key(
            f'domain = "{bad}"',
            f'domain: "{bad}" has blanks at its ends, or invisible characters; write the name that virsh shows',
            'domain = "web1"',
            "*:80/tcp -> web1:80",
        )
        for bad in (" ", "\\u200B", "\\u2060\\uFEFF", "\\u2063", chr(0x3164))
    ),
    *(
        key(
            f'{name} = "{bad}"',
            f'{name}: "{bad}" has a "/" in it, as no libvirt name has; write the name that virsh shows',
            f'{name} = "{good}"',
            f"*:80/tcp -> {domain}:80",
        )
        for name, bad, good, domain in (
            ("domain", "qemu:///system/ci-1", "ci-1", "ci-1"),
            ("domain", "/^ci-/", "ci-1", "ci-1"),
            ("network", "192.168.122.0/24", "default", "web1"),
        )
    ),
    *(
        key(
            f'network = "{bad}"',
            (
                f'network: "{bad}" stands for several networks, and an entry names one;'
                ' write one that "virsh net-list" shows'
            ),
            'network = "default"',
            OPENS_80,
        )
        for bad in ("any", "All", "*", "def*", "default,other", "lan-[12]", "lan{1..2}", "a;b")
    ),
]
# Values without quotes, which the parser has read as something else than the text of the line.
WRITTEN = [
    *(
        key(
            f"domain = {bad}",
            f'domain: must be a string, not {what}; write "{good}"',
            f'domain = "{good}"',
            f"*:80/tcp -> {good}:80",
        )
        for bad, what, good in (
            ("1.10", "a float", "1.10"),
            ("1e5", "a float", "1e5"),
            ("-0.0", "a float", "-0.0"),
            ("inf", "a float", "inf"),
            ("0x10", "16", "0x10"),
            ("0b11", "3", "0b11"),
            ("+5", "5", "+5"),
            ("1_000", "1000", "1_000"),
            ("1979-05-27", "a date or time", "1979-05-27"),
            ("07:32:00.50", "a date or time", "07:32:00.50"),
            ("[1.10]", "an array", "1.10"),
        )
    ),
    key("network = 1.10 # x", 'network: must be a string, not a float; write "1.10"', 'network = "1.10"', OPENS_80),
    Case(
        '[[forward]]\nports = ["80"]\n"domain"=0x1F\n',
        '3: forward 1: domain: must be a string, not 31; write "0x1F"',
        '[[forward]]\nports = ["80"]\n"domain"="0x1F"\n',
        "*:80/tcp -> 0x1F:80",
    ),
    Case(
        'forward = [{domain = 1.10, ports = ["80"]}]\n',
        '1: forward 1: domain: must be a string, not a float; write "1.10"',
        'forward = [{domain = "1.10", ports = ["80"]}]\n',
        "*:80/tcp -> 1.10:80",
    ),
    ports("0x50", 'must be a string, not 80; write "80"', '"80"', OPENS_80),
    ports("+80", 'must be a string, not 80; write "80"', '"80"', OPENS_80),
]
EVERY4, EVERY6 = '"0.0.0.0" stands for every address', '"::" stands for every address'
CLOSED6 = "so that IPv6 stays closed"
BOTH_SOURCES = 'sources = ["203.0.113.0/24", "2001:db8:9::/48"]\n'
SOURCES4, SOURCES6 = 'sources = ["203.0.113.0/24"]\n', 'sources = ["2001:db8:9::/48"]\n'
FROM4 = "from 203.0.113.0/24 IPv4"
EVERYWHERE = [
    Case(
        f'{WEB}ports = ["0.0.0.0:80"]\n',
        f'3: forward 1: ports[1]: {EVERY4}; leave it out, and write sources = ["0.0.0.0/0"], {CLOSED6}',
        f'{WEB}ports = ["80"]\nsources = ["0.0.0.0/0"]\n',
        "*:80/tcp -> web1:80 from 0.0.0.0/0 IPv4",
    ),
    Case(
        f'{WEB}ports = ["0.0.0.0:80"]\n{BOTH_SOURCES}',
        f"3: forward 1: ports[1]: {EVERY4}; leave it out, and the IPv6 networks of sources too, {CLOSED6}",
        f'{WEB}ports = ["80"]\n{SOURCES4}',
        f"*:80/tcp -> web1:80 {FROM4}",
    ),
    Case(
        f'{WEB}ports = ["0.0.0.0:80"]\n{SOURCES4}',
        f"3: forward 1: ports[1]: {EVERY4}; leave it out; IPv6 stays closed",
        f'{WEB}ports = ["80"]\n{SOURCES4}',
        f"*:80/tcp -> web1:80 {FROM4}",
    ),
    Case(
        f'{WEB}ports = ["0.0.0.0:80", "[2001:db8::7]:443"]\n',
        (
            f"3: forward 1: ports[1]: {EVERY4}; leave it out in an entry of its own with"
            f' sources = ["0.0.0.0/0"], {CLOSED6}'
        ),
        f'{WEB}ports = ["80"]\nsources = ["0.0.0.0/0"]\n{WEB}ports = ["[2001:db8::7]:443"]\n',
        "*:80/tcp -> web1:80 from 0.0.0.0/0 IPv4; 2001:db8::7:443/tcp -> web1:443",
    ),
    Case(
        f'{WEB}ports = ["0.0.0.0:80", "443"]\n{BOTH_SOURCES}',
        (
            f"3: forward 1: ports[1]: {EVERY4}; leave it out in an entry of its own with"
            f" the IPv4 networks of sources only, {CLOSED6}"
        ),
        f'{WEB}ports = ["80"]\n{SOURCES4}{WEB}ports = ["443"]\n{BOTH_SOURCES}',
        f"*:80/tcp -> web1:80 {FROM4}; *:443/tcp -> web1:443 from 203.0.113.0/24,2001:db8:9::/48",
    ),
    Case(
        f'{WEB}ports = ["0.0.0.0:80"]\n{SOURCES6}{WEB}ports = ["443"]\n',
        f"3: forward 1: ports[1]: {EVERY4}; the entry is IPv6 only, so nothing could match; remove the entry",
        f'{WEB}ports = ["443"]\n',
        "*:443/tcp -> web1:443",
    ),
    *(
        Case(
            f"{ENTRY_80}listen = {listen}\n{rest}",
            f"4: forward 1: {where}: {said}",
            f"{ENTRY_80}{mended}",
            f"*:80/tcp -> web1:80{opened}",
        )
        for listen, where, rest, said, mended, opened in (
            (
                '"0.0.0.0"',
                "listen",
                "",
                f'{EVERY4}; leave listen out, and write sources = ["0.0.0.0/0"], {CLOSED6}',
                'sources = ["0.0.0.0/0"]\n',
                " from 0.0.0.0/0 IPv4",
            ),
            (
                '["::"]',
                "listen[1]",
                "",
                f'{EVERY6}; leave listen out, and write sources = ["::/0"], so that IPv4 stays closed',
                'sources = ["::/0"]\n',
                " from ::/0 IPv6",
            ),
            (
                '"0.0.0.0"',
                "listen",
                BOTH_SOURCES,
                f"{EVERY4}; leave listen out, and the IPv6 networks of sources too, {CLOSED6}",
                SOURCES4,
                f" {FROM4}",
            ),
            (
                '"0.0.0.0"',
                "listen",
                SOURCES4,
                f"{EVERY4}; leave listen out; IPv6 stays closed",
                SOURCES4,
                f" {FROM4}",
            ),
            (
                '"0.0.0.0"',
                "listen",
                'address = "192.168.122.50"\n',
                f"{EVERY4}; leave listen out; IPv6 stays closed",
                'address = "192.168.122.50"\n',
                " IPv4",
            ),
            (
                '["0.0.0.0", "2001:db8::7"]',
                "listen[1]",
                "",
                f'{EVERY4}; leave it out in an entry of its own with sources = ["0.0.0.0/0"], {CLOSED6}',
                f'sources = ["0.0.0.0/0"]\n{ENTRY_80}listen = ["2001:db8::7"]\n',
                " from 0.0.0.0/0 IPv4; 2001:db8::7:80/tcp -> web1:80",
            ),
        )
    ),
]


@pytest.mark.parametrize(
    "case", [*FLAGS, *FORMER, *PORTS, *EVERYWHERE, *KEYS, *WRITTEN], ids=lambda case: case.said[:70]
)
def test_what_is_said_is_right_when_followed(case: Case) -> None:
    follow(case)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "[red]",
            "web [old]",
            "a{b}",
            "mail,",
            "web\u0301",
            "Bj\u00f6rn's; } #",
            "[2J",
            "C*, 3rd edition?",
            "web(1)",
            "what now?",
        ),
        *("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\U0001f468\u200d\U0001f4bb", "web \u2764\ufe0f"),
        *('web"\x1b[2J[red]\n\u202ex', "a\u202eweb \x85z", "0a1b-web", "any1"),
    ],
)
def test_a_name_with_signs_is_a_name(name: str) -> None:
    written = json.dumps(name, ensure_ascii=False)
    text = f'[[forward]]\ndomain = {written}\nnetwork = "web"\nports = ["80"]\n'
    assert opens(read(text)) == f"*:80/tcp -> {name}:80"


def test_every_address_of_both_families_has_one_remedy() -> None:
    problems = problems_of(f'{ENTRY_80}listen = ["0.0.0.0", "::"]\n')
    remedy = "leave listen out, as both families are named"
    assert problems == [
        f"portfwd.toml:4: forward 1: listen[1]: {EVERY4}; {remedy}",
        f"portfwd.toml:4: forward 1: listen[2]: {EVERY6}; {remedy}",
    ]
    assert opens(read(ENTRY_80)) == OPENS_80


def test_what_would_close_everything_is_not_told_to_be_left_out() -> None:
    """Without `sources`, anyone may connect, and without `listen` everywhere."""
    for name in ("sources", "listen"):
        (problem,) = problems_of(f"{ENTRY_80}{name} = []\n")
        assert problem.endswith("is empty, so nothing would match; name at least one, or remove the whole entry")


@pytest.mark.parametrize("count", [65_536, 300_000])
def test_more_ports_than_there_are_is_one_message(count: int) -> None:
    text = WEB + "ports = [" + '"80", ' * count + "]\n"
    assert problems_of(text) == [
        f"portfwd.toml:3: forward 1: ports: has {count:,} elements, more than 65,535; write fewer, and wider ones"
    ]
