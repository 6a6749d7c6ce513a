"""Each remedy for a key that names an interface, followed to the letter, makes a configuration that is right."""

import pytest

from tests.unit.remedies import OPENS_80, Case, follow, key

NAMES_NONE, ONE_NAME = "names no interface", 'write the name of one, such as "eth0"'
PUBLIC = (
    ("nat", 'domain = "web1"\npublic = "198.51.100.8"', "assign"),
    ("route", 'network = "public"\naddresses = ["203.0.113.64/29"]', "proxy"),
)
INTERFACES = [
    *(
        Case(
            f"[[{table}]]\n{keys}\n{name} = {bad}\n",
            f"4: {table} 1: {name}: {said}",
            f"[[{table}]]\n{keys}\n{good.format(name)}\n",
            "",
        )
        for table, keys, name in PUBLIC
        for bad, said, good in (
            ("true", f"must be a string, not true; {ONE_NAME}", '{} = "eth0"'),
            ("[true]", f"must be a string, not an array; {ONE_NAME}", '{} = "eth0"'),
            ("false", "must be a string, not false; leave the key out for none", ""),
            ('"true"', f'"true" {NAMES_NONE}; {ONE_NAME}', '{} = "eth0"'),
            ('"Yes"', f'"Yes" {NAMES_NONE}; {ONE_NAME}', '{} = "eth0"'),
            ('"off"', f'"off" {NAMES_NONE}; leave the key out for none', ""),
            ('"None"', f'"None" {NAMES_NONE}; leave the key out for none', ""),
            ('"any"', f'"any" {NAMES_NONE}; {ONE_NAME}', '{} = "eth0"'),
            ('"198.51.100.7"', f'"198.51.100.7" {NAMES_NONE}; {ONE_NAME}', '{} = "eth0"'),
            ('"eth0@if5"', '"eth0@if5" has "@" and what the interface is tied to; write "eth0"', '{} = "eth0"'),
        )
    ),
    *(
        key(f"interface = {bad}", f"interface: {said}; {ONE_NAME}", 'interface = "eth0"', f"{OPENS_80} on eth0")
        for bad, said in (
            ("true", "must be a string, not true"),
            ("false", "must be a string, not false"),
            ('"true"', f'"true" {NAMES_NONE}'),
            ('"off"', f'"off" {NAMES_NONE}'),
            # Without the key, packets from any would come in.
            ('"none"', f'"none" {NAMES_NONE}'),
        )
    ),
    *(
        key(f'interface = "{bad}"', f'interface: "{bad}" {said}', f'interface = "{good}"', f"{OPENS_80} on {good}")
        for bad, said, good in (
            ("eth0@if5", 'has "@" and what the interface is tied to; write "eth0"', "eth0"),
            ("eth0.5@eth0", 'has "@" and what the interface is tied to; write "eth0.5"', "eth0.5"),
            ("eth0:", 'has the ":" after the name; write "eth0"', "eth0"),
            ("eth0 ", 'has blanks at its ends, or invisible characters; write "eth0"', "eth0"),
            ("et\\u200Bh0", 'has blanks at its ends, or invisible characters; write "eth0"', "eth0"),
            ("eth0,eth1", 'is several in one string; write one of them, such as "eth0"', "eth0"),
            ("eth0; eth1", 'is several in one string; write one of them, such as "eth0"', "eth0"),
            ("eth%d", 'is no name the kernel accepts; write one that "ip link" shows', "eth0"),
            ("a/b", 'is no name the kernel accepts; write one that "ip link" shows', "eth0"),
            ("enp0s31f6-bridge0", "has 17 bytes; write an interface name of 1 to 15", "eth0"),
            *(
                (
                    pattern,
                    (
                        "has a quote, backslash, wildcard or sign that is syntax in a firewall rule;"
                        " write the plain name of one interface"
                    ),
                    "eth0",
                )
                for pattern in ("eth*", "eth+", "eth?", "eth[0-9]", "eth[12]", "eth{0,1}")
            ),
            (
                "!eth1",
                "says what is kept out, which cannot be written; write the name of an interface that is meant",
                "eth0",
            ),
        )
    ),
    key(
        'interface = "198.51.100.7"',
        'interface: "198.51.100.7" is an address; write it as listen, in place of interface',
        'listen = "198.51.100.7"',
        "198.51.100.7:80/tcp -> web1:80",
    ),
    key(
        'interface = "lo"',
        (
            'interface: "lo" is for this host alone; leave the key out in an entry of its own with'
            ' sources = ["127.0.0.1"], and write localhost = true in [daemon]'
        ),
        'sources = ["127.0.0.1"]\n[daemon]\nlocalhost = true',
        f"{OPENS_80} from 127.0.0.1/32 IPv4",
    ),
    *(
        Case(
            f"[daemon]\nuplinks = [{bad}]\n",
            f"2: daemon: uplinks[1]: {said}; {ONE_NAME}",
            '[daemon]\nuplinks = ["eth0"]\n',
            "",
        )
        for bad, said in (("true", "must be a string, not true"), ('"any"', f'"any" {NAMES_NONE}'))
    ),
]


@pytest.mark.parametrize("case", INTERFACES, ids=lambda case: case.said[:70])
def test_what_is_said_is_right_when_followed(case: Case) -> None:
    follow(case)
