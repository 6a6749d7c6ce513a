"""Each remedy, followed to the letter, makes a configuration that is right and opens no more than its text said."""

import json

import pytest

from tests.unit.remedies import OPENS_80, Case, follow, key, opens, ports
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
FORMER = [
    Case(
        f"[daemon]\n{name} = 1\n",
        (
            f'2: daemon: unknown key "{name}"; write one of auto_ports, backend, behind, deny, gates, ip_forward,'
            " keep_guests_online, label, libvirt, localhost, on_stop, resync, uplinks"
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
                "looks like a pattern of another kind than *, ? and [a-z]",
                "has such a character",
                ("ci-{1..2}", "ci-{1,2}", "ci-{1,2}*", "^ci-1$", "^ci-.*", "(ci-1|ci-2)"),
            ),
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


@pytest.mark.parametrize("case", [*FLAGS, *FORMER, *KEYS, *WRITTEN], ids=lambda case: case.said[:70])
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


def test_what_a_value_says_is_not_taken_for_the_remedy() -> None:
    text = '[[forward]]\ndomain = "web1"\nnetwork = ["default; write "]\nports = ["80"]\n'
    assert problems_of(text) == [
        'portfwd.toml:3: forward 1: network: must be a string, not an array; write "default; write"'
    ]
