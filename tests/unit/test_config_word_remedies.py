"""Remedies for keys, addresses and settings in the words of other programs; each, followed, opens no more."""

import pytest

from tests.unit.remedies import ENTRY_80, OPENS_80, WEB, Case, follow, key
from tests.unit.test_config_support import problems_of

NAT = '[[nat]]\ndomain = "web1"\npublic = "198.51.100.8"\n'
WIDER = "opens every port to everyone; write a [[forward]] in its place"
INSTEAD = f'{WEB}listen = "198.51.100.8"\nports = ["80"]\n'
OPENS_INSTEAD = "198.51.100.8:80/tcp -> web1:80"


def meant(bad: str, good: str, opened: str) -> Case:
    """A line whose key is another's."""
    return key(bad, f'unknown key "{bad.partition(" ")[0]}"; did you mean "{good.partition(" ")[0]}"?', good, opened)


FROM = f"{OPENS_80} from 203.0.113.0/24 IPv4"
KEYS = [
    *(
        meant(f'{word} = "203.0.113.0/24"', 'sources = "203.0.113.0/24"', FROM)
        for word in ("from", "source", "src", "allow", "source_ranges")
    ),
    meant('ip = "192.168.122.5"', 'address = "192.168.122.5"', f"{OPENS_80} IPv4"),
    meant('iface = "eth0"', 'interface = "eth0"', f"{OPENS_80} on eth0"),
    *(
        meant(f'{word} = "198.51.100.8"', 'listen = "198.51.100.8"', OPENS_INSTEAD)
        for word in ("bind", "host-ip", "public", "external_ip")
    ),
    key('protocol = "udp"', 'unknown key "protocol"; write the protocol in ports, as in "53/udp"', "", OPENS_80),
    key('comment = "mine"', 'unknown key "comment"; write "#" before it, as a comment', '# comment = "mine"', OPENS_80),
    key(
        "enabled = true",
        'unknown key "enabled", as an entry is in force while it is written; remove it',
        "",
        OPENS_80,
    ),
    *(
        Case(
            f"{ENTRY_80}{bad}\n",
            (
                f'4: forward 1: unknown key "{bad.partition(" ")[0]}", as an entry is in force while it is written;'
                ' write "#" before each line of it'
            ),
            "".join(f"# {line}\n" for line in f"{ENTRY_80}{bad}".splitlines()),
            "",
        )
        for bad in ("enabled = false", 'disabled = "yes"')
    ),
    # All entries would answer there then.
    key("localhost = true", "localhost is a key of [daemon]; remove it here", "", OPENS_80),
    key('assign = "eth0"', "assign is a key of [[nat]]; remove it here", "", OPENS_80),
    *(
        Case(
            f"{NAT}{bad}\n",
            f"4: nat 1: {bad.partition(' ')[0]} is a key of [[forward]], and [[nat]] {WIDER}",
            good,
            opened,
        )
        for bad, good, opened in (('ports = ["80"]', INSTEAD, OPENS_INSTEAD),)
    ),
    Case(
        '[[nat]]\nvm = "web1"\npublic = "198.51.100.8"\n',
        '2: nat 1: unknown key "vm"; did you mean "domain"?',
        NAT,
        "",
    ),
    Case(
        '[[route]]\nnetwork = "public"\nsubnet = "203.0.113.64/29"\n',
        '3: route 1: unknown key "subnet"; did you mean "addresses"?',
        '[[route]]\nnetwork = "public"\naddresses = "203.0.113.64/29"\n',
        "",
    ),
    Case(
        f'[daemon]\nsources = "203.0.113.0/24"\n{ENTRY_80}',
        "2: daemon: sources is a key of [[forward]] and [[nat]] and [[route]]; move it there",
        f'[daemon]\n{ENTRY_80}sources = "203.0.113.0/24"\n',
        FROM,
    ),
]
ADDRESSES = [
    *(
        key(
            f'sources = "{bad}"',
            f'sources: "{bad}" {said}; write {good}',
            f"sources = {mended or good}",
            f"{OPENS_80} from {opened} IPv4",
        )
        for bad, said, good, mended, opened in (
            ("203.0.113.0 /24", "has blanks in it", '"203.0.113.0/24"', "", "203.0.113.0/24"),
            ("203.0.113.0/ 24", "has blanks in it", '"203.0.113.0/24"', "", "203.0.113.0/24"),
            (
                "203.0.113.0/255.255.255.0",
                "has a mask where a prefix length belongs",
                '"203.0.113.0/24"',
                "",
                "203.0.113.0/24",
            ),
            (
                "203.0.113.0/0.0.0.255",
                "has a mask where a prefix length belongs",
                '"203.0.113.0/24"',
                "",
                "203.0.113.0/24",
            ),
            ("203.0.113.*", "is a network in short", '"203.0.113.0/24"', "", "203.0.113.0/24"),
            ("203.0.*.*", "is a network in short", '"203.0.0.0/16"', "", "203.0.0.0/16"),
            ("203.0.113.", "is a network in short", '"203.0.113.0/24"', "", "203.0.113.0/24"),
            ("10/8", "is a network in short", '"10.0.0.0/8"', "", "10.0.0.0/8"),
            ("203.0.113.4-203.0.113.7", "is a range", '"203.0.113.4/30"', "", "203.0.113.4/30"),
            ("203.0.113.4 - 7", "is a range", '"203.0.113.4/30"', "", "203.0.113.4/30"),
            (
                "203.0.113.5-203.0.113.6",
                "is a range",
                '"203.0.113.5", "203.0.113.6" in an array',
                '["203.0.113.5", "203.0.113.6"]',
                "203.0.113.5/32,203.0.113.6/32",
            ),
            ("localhost", "is no network", '"127.0.0.1"', "", "127.0.0.1/32"),
            *(
                (bad, said, '"192.168.1.1/32"', "", "192.168.1.1/32")
                for bad, said in (
                    ("192.168.1.1/0", "is one address with a network's prefix"),
                    ("192.168.1.1/8", "is one address with a network's prefix"),
                    ("192.168.1.1 /8", "has blanks in it"),
                    ("192.168.1.1/255.0.0.0", "has a mask where a prefix length belongs"),
                    ("192.168.1.1/0.0.0.0", "has a mask where a prefix length belongs"),
                    ("192.168.1.1 0.0.0.255", "has a mask where a prefix length belongs"),
                )
            ),
            *(
                (bad, "has a mask where a prefix length belongs", '"10.0.0.0/8"', "", "10.0.0.0/8")
                for bad in ("10.0.0.0 255.0.0.0", "10.0.0.0 netmask 255.0.0.0", "10.0.0.0 0.255.255.255")
            ),
            (
                "192.168.1.1/8, 10.0.0.0/8",
                "is several in one string",
                '"192.168.1.1/32", "10.0.0.0/8" in an array',
                '["192.168.1.1/32", "10.0.0.0/8"]',
                "192.168.1.1/32,10.0.0.0/8",
            ),
        )
    ),
    *(
        key(
            f'sources = "{bad}"',
            f'sources: "{bad}" is no network; leave sources out for clients from anywhere',
            "",
            OPENS_80,
        )
        for bad in ("any", "ALL", "*", "anywhere")
    ),
    *(
        key(
            f'listen = "{bad}"',
            f'listen: "{bad}" stands for every address of both families; leave listen out',
            "",
            OPENS_80,
        )
        for bad in ("any", "*")
    ),
    key(
        'listen = "[::]"',
        (
            'listen: "[::]" stands for every address; leave listen out, and write sources = ["::/0"], so that IPv4'
            " stays closed"
        ),
        'sources = ["::/0"]',
        f"{OPENS_80} from ::/0 IPv6",
    ),
    key(
        'listen = "198.51.100.8/24"',
        'listen: "198.51.100.8/24" is a network; write "198.51.100.8"',
        'listen = "198.51.100.8"',
        OPENS_INSTEAD,
    ),
    *(
        key(f'address = "{bad}"', f'address: "{bad}" is not an IP address; leave it out to ask libvirt', "", OPENS_80)
        for bad in ("dhcp", "auto")
    ),
    key(
        'address = "192.168.122.5/24"',
        'address: "192.168.122.5/24" is a network; write "192.168.122.5"',
        'address = "192.168.122.5"',
        f"{OPENS_80} IPv4",
    ),
    *(
        key(
            f'mac = "{bad}"',
            f'mac: "{bad}" is a MAC address in another form; write "52:54:00:12:34:56"',
            'mac = "52:54:00:12:34:56"',
            OPENS_80,
        )
        for bad in ("525400123456", "5254.0012.3456", "52:54:0:12:34:56", "52-54-00-12.34.56")
    ),
    key(
        'network = "none"',
        'network: "none" names no network; write one that "virsh net-list" shows',
        'network = "default"',
        OPENS_80,
    ),
    Case(
        '[[route]]\nnetwork = "public"\naddresses = "203.0.113.64 - 203.0.113.71"\n',
        '3: route 1: addresses: "203.0.113.64 - 203.0.113.71" is a range; write "203.0.113.64/29"',
        '[[route]]\nnetwork = "public"\naddresses = "203.0.113.64/29"\n',
        "",
    ),
]
SETTINGS = [
    *(
        Case(
            f"[{table}]\n{name} = {bad}\n",
            f"2: {table}: {name}: {said} {good}{behind}",
            f"[{table}]\n{name} = {good}\n",
            "",
        )
        for table, name, bad, said, good, behind in (
            *(
                ("daemon", "resync", f'"{bad}"', f'"{bad}" is not a duration here; write', f'"{good}"', "")
                for bad, good in (
                    ("45", "45s"),
                    ("1 minute", "1m"),
                    ("30sec", "30s"),
                    ("90S", "90s"),
                    ("1m30s", "90s"),
                    ("2 hours", "2h"),
                    ("1d", "24h"),
                    ("never", "24h"),
                    ("0", "24h"),
                )
            ),
            ("daemon", "resync", "45", "must be a string, not 45; write", '"45s"', ""),
            ("daemon", "resync", "false", "must be a string, not false; write", '"24h"', ""),
            *(
                ("daemon", name, f'"{bad}"', f'"{bad}" is not one of its values; write', f'"{good}"', "")
                for name, bad, good in (
                    ("backend", "nft", "nftables"),
                    ("backend", "iptables-nft", "nftables"),
                    ("backend", "legacy", "iptables"),
                    ("on_stop", "flush", "remove"),
                    ("on_stop", "leave", "keep"),
                )
            ),
            ("daemon", "label", '"30"', 'must be an integer, not "30"; write', "30", " without quotes"),
            *(
                ("metrics", "listen", f'"{bad}"', f'"{bad}" is no address and port; write', f'"{good}"', "")
                for bad, good in (
                    (":9751", "127.0.0.1:9751"),
                    ("*:9751", "127.0.0.1:9751"),
                    ("9751", "127.0.0.1:9751"),
                    ("eth0:9751", "127.0.0.1:9751"),
                    ("http://127.0.0.1:9751/metrics", "127.0.0.1:9751"),
                    ("192.0.2.1", "192.0.2.1:9750"),
                    ("[::1]", "[::1]:9750"),
                    ("::1:9751", "[::1]:9751"),
                    ("localhost", "127.0.0.1:9750"),
                )
            ),
            (
                "metrics",
                "listen",
                '"[127.0.0.1]:9751"',
                '"[127.0.0.1]:9751" has brackets around IPv4, where only IPv6 has them; write',
                '"127.0.0.1:9751"',
                "",
            ),
        )
    ),
    *(
        Case(
            f"[daemon]\n{name} = {bad}\n",
            f"2: daemon: {name}{said}; write {good}",
            f"[daemon]\n{name} = {mended or good}\n",
            "",
        )
        for name, bad, said, good, mended in (
            *(
                (name, f'"{bad}"', f': must be an array, not "{bad}"', f"[{good}]", "")
                for name, bad, good in (
                    ("uplinks", "eth0, eth1", '"eth0", "eth1"'),
                    ("uplinks", "eth0 eth1", '"eth0", "eth1"'),
                    ("behind", "DOCKER-USER, f2b-*", '"DOCKER-USER", "f2b-*"'),
                    ("gates", "inet filter forward, ip mine fw", '"inet filter forward", "ip mine fw"'),
                )
            ),
            *(
                (name, f'["{bad}"]', f'[1]: "{bad}" is several in one string', good, f"[{good}]")
                for name, bad, good in (
                    ("uplinks", "eth0, eth1", '"eth0", "eth1"'),
                    ("behind", "DOCKER-USER, f2b-*", '"DOCKER-USER", "f2b-*"'),
                    ("gates", "inet filter forward, ip mine fw", '"inet filter forward", "ip mine fw"'),
                    ("libvirt", "qemu:///system, lxc:///system", '"qemu:///system", "lxc:///system"'),
                )
            ),
            (
                "libvirt",
                '"qemu:///system, lxc:///system"',
                ': "qemu:///system, lxc:///system" is several in one string',
                '"qemu:///system", "lxc:///system" in an array',
                '["qemu:///system", "lxc:///system"]',
            ),
            ("behind", '""', ': must be an array, not ""', 'one such as ["f2b-*"]', '["f2b-*"]'),
        )
    ),
    Case(
        '[daemon]\ngates = ["inet  filter forward"]\n',
        '2: daemon: gates[1]: "inet  filter forward" has more than one blank in a place; write "inet filter forward"',
        '[daemon]\ngates = ["inet filter forward"]\n',
        "",
    ),
    Case(
        '[control]\ngroup = "100"\n',
        '2: control: group: "100" is the number of a group; write the name that "getent group 100" shows',
        '[control]\ngroup = "users"\n',
        "",
    ),
    Case(
        '[control]\ngroup = "libvirt,kvm"\n',
        '2: control: group: "libvirt,kvm" is no name of a group; write one that "getent group" shows',
        '[control]\ngroup = "libvirt"\n',
        "",
    ),
]


@pytest.mark.parametrize(
    ("line", "where", "remedy"),
    [
        *(
            (f'sources = ["{bad}"]', "sources[1]", "list the networks that may connect")
            for bad in ("!10.0.0.0/8", "! 10.0.0.0/8", "not 10.0.0.0/8", "0.0.0.0/0 except 10.0.0.0/8")
        ),
        *((f'ports = ["{bad}"]', "ports[1]", "write the ports that are to be open") for bad in ("!22", "not 22")),
        ('listen = ["!198.51.100.7"]', "listen[1]", "write the addresses of this host on which it may listen"),
    ],
)
def test_what_is_kept_out_is_not_let_in(line: str, where: str, remedy: str) -> None:
    ports = "" if line.startswith("ports") else 'ports = ["80"]\n'
    what = line.partition("[")[2].strip("]")
    said = f"forward 1: {where}: {what} says what is kept out, which cannot be written; {remedy}"
    assert problems_of(f"{WEB}{line}\n{ports}") == [f"portfwd.toml:3: {said}"]


@pytest.mark.parametrize("case", [*KEYS, *ADDRESSES, *SETTINGS], ids=lambda case: case.said[:70])
def test_what_is_said_is_right_when_followed(case: Case) -> None:
    follow(case)
