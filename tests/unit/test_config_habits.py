"""Remedies for what people bring along from other programs and languages; each followed to the letter opens no more."""

import pytest

from tests.unit.remedies import BOTH, ENTRY_80, OPENS_80, WEB, Case, follow, key, ports, toml

SQUARE = "an array has square brackets; write"
BRACKETS, BESIDE = "the brackets do not match; write", "stands after domain; write"
AS_KEY = 'begins neither a key with its value nor a header; write "#" before it, and what it means as KEY = VALUE'
OTHER = 'write a header [[forward]] for each entry, and its keys below as domain = "…"'
NO_LINE = "and no key holds one; move its keys up, and remove the header"
# Lines as other languages have them, and what is left of headers, arrays and comments.
HABITS = [
    *(
        toml(bad, line, f"this is {language}; {OTHER}", ENTRY_80, OPENS_80)
        for language, bad, line in (
            ("XML", "<domain type='kvm'/>\n", 1),
            ("XML", "\n<?xml version='1.0'?>\n<forward/>\n", 2),
            ("YAML", "- domain: web1\n  ports: ['80']\n", 1),
            ("YAML", "---\nforward:\n  - domain: web1\n", 1),
            ("YAML", "# mine\nservices:\n  web1:\n    ports:\n", 1),
        )
    ),
    *(
        toml(f"{bad}{ENTRY_80.removeprefix('[[forward]]')}", 1, f"{BRACKETS} [[forward]]", ENTRY_80, OPENS_80)
        for bad in ("[ [forward] ]", "[ [forward]]", "forward]]", "[[forward] ]", '[["forward"]', "[[forward")
    ),
    toml(
        f"forward:{ENTRY_80.removeprefix('[[forward]]')}",
        1,
        'a header has brackets; write [[forward]] in place of "forward:"',
        ENTRY_80,
        OPENS_80,
    ),
    *(
        toml(f"{WEB}ports = {bad}\n", 3, f'{SQUARE} "]" in place of "{bad[-1]}"', f'{WEB}ports = ["80"]\n', OPENS_80)
        for bad in ('["80"}', '["80")')
    ),
    *(
        toml(
            f"{WEB}ports = {bad}\n",
            3,
            f'a port string has its parts in one; write "{good}"',
            f'{WEB}ports = ["{good}"]\n',
            opened,
        )
        for bad, good, opened in (
            ('["80" - "81"]', "80-81", "*:80-81/tcp -> web1:80-81"),
            ('["80": "443"]', "80:443", "*:80/tcp -> web1:443"),
            ('["80" -> 443]', "80:443", "*:80/tcp -> web1:443"),
        )
    ),
    *(
        toml(
            f'{WEB}ports = ["80"{sign} "443"]\n',
            3,
            f'elements are separated by commas; write "," in place of "{sign.strip()}"',
            f'{WEB}ports = ["80", "443"]\n',
            BOTH,
        )
        for sign in (";", " +", " &")
    ),
    *(
        toml(
            f"{WEB}ports = {bad}\n",
            3,
            f'"ports" has no value{what}; write ["…"] with one in it after the "=", or remove the whole entry',
            "",
            "",
        )
        for bad, what in (("", ""), ("]", ' before "]"'))
    ),
    # What is left out there opens the entry to anyone.
    *(
        toml(
            f"{ENTRY_80}{name} =\n",
            4,
            f'"{name}" has no value; write {what} after the "=", or remove the whole entry',
            "",
            "",
        )
        for name, what in (
            ("sources", '["…"] with one in it'),
            ("listen", '["…"] with one in it'),
            ("interface", "one"),
        )
    ),
    toml(
        f"{ENTRY_80}address =\n",
        4,
        '"address" has no value; write one after the "=", or remove the line',
        ENTRY_80,
        OPENS_80,
    ),
    toml(
        "[daemon]\nip_forward =\n",
        2,
        '"ip_forward" has no value; write true or false after the "="',
        "[daemon]\nip_forward = false\n",
    ),
    toml(
        "[metrics]\nlisten =\n",
        2,
        '"listen" has no value; write ["…"] with one in it after the "=", or remove the line',
        "[metrics]\n",
    ),
    toml(
        f"{WEB}ports = 8080:80\n",
        3,
        '8080:80 lacks its brackets and quotes; write ["8080:80"]',
        f'{WEB}ports = ["8080:80"]\n',
        "*:8080/tcp -> web1:80",
    ),
    toml(
        f'{WEB}ports:  # mine\n  - "80"\n  - 443:443  # tls\n',
        3,
        'an array has brackets and commas; write ports = ["80", "443:443"] in place of this line and its list',
        f'{WEB}ports = ["80", "443:443"]\n',
        BOTH,
    ),
    *(
        toml(
            f"{ENTRY_80}{bad}\n",
            4,
            "a value stands here without a key; move it between the brackets of its array",
            f'{WEB}ports = ["80", "443"]\n',
            BOTH,
        )
        for bad in ('"443"', '- "443"', "443", '"443"]')
    ),
    *(
        toml(
            f"{mark} mine\n{ENTRY_80}",
            1,
            f'a comment begins with "#"; write "#" in place of "{mark}"',
            f"# mine\n{ENTRY_80}",
            OPENS_80,
        )
        for mark in ("//", "/*", "--", "!", "<!--")
    ),
    toml(
        '[[forward]]\ndomain = "web1" // mine\nports = ["80"]\n',
        2,
        'a comment begins with "#"; write "#" in place of "//"',
        '[[forward]]\ndomain = "web1" # mine\nports = ["80"]\n',
        OPENS_80,
    ),
    *(
        toml(f'[[forward]]\n{bad} "web1"\nports = ["80"]\n', 2, said, ENTRY_80, OPENS_80)
        for bad, said in (
            ("export domain =", '"export" stands before a key; remove it'),
            ("- domain =", '"-" stands before a key; remove it'),
            ("domain +=", f'"+=" {BESIDE} "=" in its place'),
            ("domain[] =", f'"[] =" {BESIDE} "=" in its place'),
        )
    ),
    *(
        toml(f"{bad}\n{ENTRY_80}", 1, f'"{word}" {AS_KEY}', f"# {bad}\n{ENTRY_80}", OPENS_80)
        for bad, word in (
            ("iptables -t nat -A PREROUTING -p tcp --dport 80 -j DNAT --to 192.168.122.5", "iptables"),
            ("-A PREROUTING -p tcp --dport 80 -j DNAT --to 192.168.122.5", "-A"),
            ("allow 80/tcp", "allow"),
            ("tcp dport 80 dnat to 192.168.122.5", "tcp"),
            ("forward 80 -> web1:80", "forward"),
            ("(forward)", "(forward)"),
        )
    ),
    # None of what stands behind a value may be dropped, as it may be what keeps the entry closed.
    *(
        toml(
            f'{WEB}ports = ["80"]{bad}\n',
            3,
            said,
            f'{WEB}ports = ["80"]\nsources = "203.0.113.0/24"\n',
            f"{OPENS_80} from 203.0.113.0/24 IPv4",
        )
        for bad, said in (
            (
                ' sources = "203.0.113.0/24"',
                'sources = "203.0.113.0/24" stands after the value; move it to a line of its own',
            ),
            (
                ', sources = "203.0.113.0/24"',
                'sources = "203.0.113.0/24" stands after the value; move it to a line of its own',
            ),
            (
                " from 203.0.113.0/24",
                "from 203.0.113.0/24 stands after the value; move it to a line of its own, as KEY = VALUE",
            ),
        )
    ),
    toml(
        f'{WEB}ports = ["53"]/udp\n',
        3,
        '/udp stands after the value; write the protocol within the quotes, as in "53/udp"',
        f'{WEB}ports = ["53/udp"]\n',
        "*:53/udp -> web1:53",
    ),
    toml(
        f"{ENTRY_80}[[forward.ports]]\nhost = 80\n",
        4,
        f"[[forward.ports]] is a table in a table, {NO_LINE}",
        ENTRY_80,
        OPENS_80,
    ),
]

STRAY = "is in no table; write"
TABLES = [
    Case(
        'domain = "web1"\nports = ["80"]\n',
        "1: domain and the keys below it are in no table; write [[forward]] on a line above",
        ENTRY_80,
        OPENS_80,
    ),
    Case('resync = "30s"\n', f"1: resync {STRAY} [daemon] on a line above", '[daemon]\nresync = "30s"\n', ""),
    Case(
        'public = "198.51.100.8"\ndomain = "web1"\n',
        "1: public and the keys below it are in no table; write [[nat]] on a line above",
        '[[nat]]\npublic = "198.51.100.8"\ndomain = "web1"\n',
        "",
    ),
    *(
        Case(
            f'{bad}\nports = ["80"]\n',
            '1: forward: a header names no domain; write [[forward]] in its place, and domain = "web1" below',
            ENTRY_80,
            OPENS_80,
        )
        for bad in ("[forward.web1]", "[[forward.web1]]")
    ),
    Case(
        '[[route.public]]\naddresses = "203.0.113.64/29"\n',
        '1: route: a header names no network; write [[route]] in its place, and network = "public" below',
        '[[route]]\nnetwork = "public"\naddresses = "203.0.113.64/29"\n',
        "",
    ),
    Case(
        f"{ENTRY_80}[forward.options]\nmasquerade = true\n",
        (
            '4: forward 1: "options" is a table in a table, and no key holds one; move its keys up, and remove its'
            " header"
        ),
        f"{ENTRY_80}masquerade = true\n",
        OPENS_80,
    ),
    Case(
        f"[daemon]\n[[daemon.forward]]{ENTRY_80.removeprefix('[[forward]]')}",
        "2: daemon: forward is no table in another; write [[forward]] in place of this header",
        f"[daemon]\n{ENTRY_80}",
        OPENS_80,
    ),
    Case(
        '[daemon]\ngates = "inet filter forward"\n',
        '2: daemon: gates: must be an array, not "inet filter forward"; write ["inet filter forward"]',
        '[daemon]\ngates = ["inet filter forward"]\n',
        "",
    ),
]
COLON = "has a colon where a range has a dash; write"
EVERY, ARROW = "names every address, which needs no word; write", 'has an arrow where ":" belongs; write'
BETWEEN, BEHIND = "names the guest, which domain and address do; write", 'has no ":" after the brackets; write'
TO_FILL = "is to be filled in, which nothing does here; write the name that virsh shows, or its UUID if that is it"
NO_UUID = 'looks like a UUID and is none; write the one that "virsh domuuid" shows'
PORTS = [
    *(
        ports(f'"{bad}"', f'"{bad}" {said} "{good}"', f'"{good}"', f"{listen}/tcp -> web1:{guest}")
        for bad, said, good, listen, guest in (
            ("8000-8010:9000:9010", COLON, "8000-8010:9000-9010", "*:8000-8010", "9000-9010"),
            ("8000:8010:9000-9010", COLON, "8000-8010:9000-9010", "*:8000-8010", "9000-9010"),
            ("8000-8010:9000:9005", COLON, "8000-8005:9000-9005", "*:8000-8005", "9000-9005"),
            ("8000:8010:9000-9000", COLON, "8000:9000", "*:8000", "9000"),
            ("*:80", EVERY, "80", "*:80", "80"),
            ("any:8080:80", EVERY, "8080:80", "*:8080", "80"),
            ("[*]:8080-8081:80-81", EVERY, "8080-8081:80-81", "*:8080-8081", "80-81"),
            ("80->8080", ARROW, "80:8080", "*:80", "8080"),
            ("80 => 8080", ARROW, "80:8080", "*:80", "8080"),
            ("80=8080", ARROW, "80:8080", "*:80", "8080"),
            ("80\u21928080", ARROW, "80:8080", "*:80", "8080"),
            ("198.51.100.7:80->8080", ARROW, "198.51.100.7:80:8080", "198.51.100.7:80", "8080"),
            ("8080:web1:80", BETWEEN, "8080:80", "*:8080", "80"),
            ("8080:192.168.122.5:80", BETWEEN, "8080:80", "*:8080", "80"),
            ("198.51.100.7:8080:192.168.122.5:80", BETWEEN, "198.51.100.7:8080:80", "198.51.100.7:8080", "80"),
            ("[2001:db8::7]:8080:web1:80", BETWEEN, "[2001:db8::7]:8080:80", "2001:db8::7:8080", "80"),
            ("8080:80:80", "has a third port; write", "8080:80", "*:8080", "80"),
            ("[2001:db8::7]80", BEHIND, "[2001:db8::7]:80", "2001:db8::7:80", "80"),
            ("[2001:db8::7].8080:80", BEHIND, "[2001:db8::7]:8080:80", "2001:db8::7:8080", "80"),
        )
    ),
    *(
        ports(bad, f"{said} is no port; write a number from 1 to 65535 in quotes", '"80"', OPENS_80)
        for bad, said in (('"http"', '"http"'), ('"ssh:22"', '"ssh:22": "ssh"'))
    ),
    *(
        ports(f'"{bad}"', f'"{bad}" has white space in it; write "53/udp"', '"53/udp"', "*:53/udp -> web1:53")
        for bad in ("udp 53", "UDP  53", " udp 53")
    ),
    ports(
        '"udp 53 tcp 80"',
        '"udp 53 tcp 80" has white space or commas in it; write one port or range in each string, its protocol behind'
        ' it, as in "53/udp"',
        '"53/udp", "80/tcp"',
        "*:53/udp -> web1:53; *:80/tcp -> web1:80",
    ),
    *(
        key(f'domain = "{bad}"', f'domain: "{bad}" {TO_FILL}', 'domain = "web1"', OPENS_80)
        for bad in ("${WEB}", "$WEB", "{{ web }}", "<name>")
    ),
    *(
        key(f'domain = "{bad}"', f'domain: "{bad}" {NO_UUID}', 'domain = "web1"', OPENS_80)
        for bad in (
            "3f2504e0-4f89-11d3-9a0c-0305e82c330",
            "3F2504E0-4F89-11D3-9A0C-0305E82C33011",
            "3f2504e-4f89-11d3-9a0c-0305e82c3301",
        )
    ),
    *(
        key(
            bad,
            f'unknown key "{bad.split()[0]}", and without it more may connect; write sources with those that may, or'
            ' "#" before each line of it',
            'sources = ["203.0.113.0/24"]',
            f"{OPENS_80} from 203.0.113.0/24 IPv4",
        )
        for bad in (
            'blocklist = ["198.51.100.0/24"]',
            'limit = "30/minute"',
            "max_connections = 20",
            'blacklist = "DE"',
        )
    ),
    key(
        'interface = ["eth0", "eth1"]',
        'interface: must be a string, not an array; write "eth0", and an entry of its own for each of the others',
        'interface = "eth0"\n[[forward]]\nports = ["80"]\ndomain = "web1"\ninterface = "eth1"',
        f"{OPENS_80} on eth0; {OPENS_80} on eth1",
    ),
    key(
        'domain = ["web1", "web2"]',
        'domain: must be a string, not an array; write "web1", and an entry of its own for each of the others',
        'domain = "web1"\n[[forward]]\nports = ["81"]\ndomain = "web2"',
        f"{OPENS_80}; *:81/tcp -> web2:81",
    ),
    ports("true", "must be a string, not true; write a number from 1 to 65535 in quotes", '"80"', OPENS_80),
    key(
        'listen = "::1"',
        (
            'listen: "::1" is for this host alone; leave it out in an entry of its own with sources = ["::1"], and'
            " write localhost = true in [daemon]"
        ),
        'sources = ["::1"]\n[daemon]\nlocalhost = true',
        f"{OPENS_80} from ::1/128 IPv6",
    ),
]


@pytest.mark.parametrize("case", [*HABITS, *TABLES, *PORTS], ids=lambda case: case.said[:70])
def test_what_is_said_is_right_when_followed(case: Case) -> None:
    follow(case)
