"""Each remedy for a text that is not TOML, followed to the letter, makes a configuration that opens no more."""

import pytest

from tests.unit.remedies import BOTH, ENTRY_80, OPENS_80, WEB, Case, follow, opens, toml
from tests.unit.test_config_support import problems_of, read

SINGLE = "[forward] in single brackets may stand once only; write [[forward]]"
TWO = '{0}\ndomain = "a"\nports = ["1"]\n{0}\ndomain = "b"\nports = ["2"]\n'
NO_BRACKET = 'the array that ends here has no "]"; write "]"'
SYNTAX = [
    toml("[daemon]\nip_forward = no\n", 2, '"no" is no value; write false', "[daemon]\nip_forward = false\n"),
    toml('[[forward]]\ndomain = web1\nports = ["80"]\n', 2, 'web1 lacks its quotes; write "web1"', ENTRY_80, OPENS_80),
    toml(f"{WEB}ports = [80:80]\n", 3, '80:80 lacks its quotes; write "80:80"', f'{WEB}ports = ["80:80"]\n', OPENS_80),
    toml(
        f"{ENTRY_80}listen = 198.51.100.7\n",
        4,
        '198.51.100.7 lacks its quotes; write "198.51.100.7"',
        f'{ENTRY_80}listen = "198.51.100.7"\n',
        "198.51.100.7:80/tcp -> web1:80",
    ),
    toml(
        f"{ENTRY_80}sources = [203.0.113.0/24]\n",
        4,
        '203.0.113.0/24 lacks its quotes; write "203.0.113.0/24"',
        f'{ENTRY_80}sources = ["203.0.113.0/24"]\n',
        "*:80/tcp -> web1:80 from 203.0.113.0/24 IPv4",
    ),
    toml(
        f'{WEB}ports = ["80"\n"443"]\n',
        3,
        'a comma is missing after "80"; write "80", "443"',
        f'{WEB}ports = ["80", "443"]\n',
        BOTH,
    ),
    toml(
        f"{WEB}ports = [80 443]\n",
        3,
        'a comma is missing after 80; write "80", "443"',
        f'{WEB}ports = ["80", "443"]\n',
        BOTH,
    ),
    toml('[[forward]]\nports = ["80"\ndomain = "web1"\n', 2, f'{NO_BRACKET} after "80"', ENTRY_80, OPENS_80),
    toml(f'{WEB}ports = ["80",\n', 3, f"{NO_BRACKET} in place of the last comma", ENTRY_80, OPENS_80),
    toml(
        f'{WEB}ports = [\n"80",\n"443" # the site\n\n[[forward]]\ndomain = "b"\nports = ["1"]\n',
        5,
        f'{NO_BRACKET} after "443"',
        f'{WEB}ports = [\n"80",\n"443"] # the site\n\n[[forward]]\ndomain = "b"\nports = ["1"]\n',
        f"{BOTH}; *:1/tcp -> b:1",
    ),
    toml(
        '[[forward]]\ndomain = "web1\nports = ["80"]\n',
        2,
        'the second quote is missing; write "web1"',
        ENTRY_80,
        OPENS_80,
    ),
    toml(
        f'{WEB}ports = ["80, "443"]\n',
        3,
        "a quote is missing on this line; write each value between two",
        f'{WEB}ports = ["80", "443"]\n',
        BOTH,
    ),
    toml(
        '[[forward]]\ndomain: "web1"\nports = ["80"]\n',
        2,
        '":" stands after domain; write "=" in its place',
        ENTRY_80,
        OPENS_80,
    ),
    toml(
        '[[forward]]\ndomain "web1"\nports = ["80"]\n', 2, '"=" is missing; write "=" after domain', ENTRY_80, OPENS_80
    ),
    toml(
        '[[forward]\ndomain = "web1"\nports = ["80"]\n',
        1,
        "the brackets do not match; write [[forward]]",
        ENTRY_80,
        OPENS_80,
    ),
    toml(f'{WEB}ports = "80"]\n', 3, '"[" is missing; write ["80"]', ENTRY_80, OPENS_80),
    toml(f'{WEB}ports = ["80"]]\n', 3, '"]" is one too many here; remove it', ENTRY_80, OPENS_80),
    toml(
        '[[forward]]\ndomain = \u201cweb1\u201d\nports = ["80"]\n',
        2,
        '\u201c is a typographic quote; write "web1"',
        ENTRY_80,
        OPENS_80,
    ),
    toml(
        f"; mine\n{ENTRY_80}",
        1,
        'a comment begins with "#"; write "#" in place of ";"',
        f"# mine\n{ENTRY_80}",
        OPENS_80,
    ),
    toml(
        f'{ENTRY_80}ports = ["443"]\n',
        4,
        '"ports" is written twice in one table; remove one of the two',
        ENTRY_80,
        OPENS_80,
    ),
    toml(
        "[daemon]\n[control]\n[daemon]\nlocalhost = true\n",
        3,
        "[daemon] is on line 1 already; move its keys there, and remove this line",
        "[daemon]\nlocalhost = true\n[control]\n",
    ),
]
SECOND, FIRST = "the second quote is missing; write", "the first quote is missing; write"
VALUE_BEFORE = "has a value already; write what that says under"
SQUARE = "an array has square brackets; write"
JSON = 'this is JSON; write a header [[forward]] for each entry, and its keys below as domain = "…"'
MORE_SYNTAX = [
    *(
        toml(f"{WEB}ports = {bad}\n", 3, said, f"{WEB}ports = {good}\n", BOTH)
        for bad, said, good in (
            ('["80", "443]', f'{SECOND} "443"]', '["80", "443"]'),
            ("['80', '443]", f"{SECOND} '443']", "['80', '443']"),
            ('["80", "443]  # the site', f'{SECOND} "443"]', '["80", "443"]  # the site'),
            ('["80", 443"]', f'{FIRST} "443"', '["80", "443"]'),
            ('[80", "443"]', f'{FIRST} "80"', '["80", "443"]'),
            ('["80", "443", "]', 'a quote with no value stands before "]"; remove the quote', '["80", "443", ]'),
            ('("80", "443")', f'{SQUARE} "[" for "(", and "]" for ")"', '["80", "443"]'),
            ('{"80", "443"}', f'{SQUARE} "[" for "{{", and "]" for "}}"', '["80", "443"]'),
            ('(\n"80",\n"443",\n)', f'{SQUARE} "[" for "(", and "]" for ")"', '[\n"80",\n"443",\n]'),
        )
    ),
    toml(
        f'{ENTRY_80}sources = ["203.0.113.0/24", "]\n',
        4,
        'a quote with no value stands before "]"; remove the quote',
        f'{ENTRY_80}sources = ["203.0.113.0/24", ]\n',
        f"{OPENS_80} from 203.0.113.0/24 IPv4",
    ),
    toml(f'{WEB}ports = [\n"80,\n"443"]\n', 4, f'{SECOND} "80",', f'{WEB}ports = [\n"80",\n"443"]\n', BOTH),
    toml('[[forward]]\ndomain = "web1 # x\nports = ["80"]\n', 2, f'{SECOND} "web1"', ENTRY_80, OPENS_80),
    *(
        toml(
            f'[[forward]]\ndomain {bad} "web1"\nports = ["80"]\n',
            2,
            f'"{bad}" stands after domain; write "=" in its place',
            ENTRY_80,
            OPENS_80,
        )
        for bad in ("==", "=>", ":=")
    ),
    toml(
        f'forward = [{{domain = "a", ports = ["1"]}}]\n{ENTRY_80}',
        1,
        f"forward {VALUE_BEFORE} [[forward]] too, and remove forward = here",
        f'[[forward]]\ndomain = "a"\nports = ["1"]\n{ENTRY_80}',
        f"*:1/tcp -> a:1; {OPENS_80}",
    ),
    toml(
        "daemon = {localhost = true}\n[daemon]\nip_forward = true\n",
        1,
        f"daemon {VALUE_BEFORE} [daemon] too, and remove daemon = here",
        "[daemon]\nip_forward = true\nlocalhost = true\n",
    ),
    *(
        toml(f"{bad}{text}", 1, f"the brackets do not match; write {good}", f"{good}{text}", opened)
        for bad, good, text, opened in (
            ("[[forward]]]", "[[forward]]", ENTRY_80.removeprefix("[[forward]]"), OPENS_80),
            ("[daemon]]", "[daemon]", "\nlocalhost = true\n", ""),
            ("[[daemon]", "[daemon]", "\nlocalhost = true\n", ""),
        )
    ),
    toml(
        "daemon:\nlocalhost = true\n",
        1,
        'a header has brackets; write [daemon] in place of "daemon:"',
        "[daemon]\nlocalhost = true\n",
    ),
    *(
        toml(bad, line, JSON, ENTRY_80, OPENS_80)
        for bad, line in (
            ('{"forward": [{"domain": "web1", "ports": ["80"]}]}\n', 1),
            ('\n{\n"forward": [\n{"domain": "web1", "ports": ["80"]}]}\n', 2),
            ('[{"domain": "web1", "ports": ["80"]}]\n', 1),
        )
    ),
]
ONE_QUOTE = "a quote is missing on this line; write each value between two"
BACKSLASH = 'a single "\\" stands in this text; write two of them for each'
WEB_SINGLE = "[[forward]]\ndomain = {}\nports = ['80']\n"
# Of a quote that is missing while others follow, single ones too, and of what is no quote at all.
QUOTES = [
    *(
        toml(WEB_SINGLE.format(bad), 2, f"{SECOND} {good}", WEB_SINGLE.format(good), OPENS_80)
        for bad, good in (
            ("'web1", "'web1'"),
            ("'web1 # mine", "'web1'"),
            ("\"web1'", '"web1"'),
            ("'web1\"", "'web1'"),
        )
    ),
    toml(
        f"{WEB}ports = ['80']\nsources = '203.0.113.0/24\n[metrics]\nlisten = '127.0.0.1:9750'\n",
        4,
        f"{SECOND} '203.0.113.0/24'",
        f"{WEB}ports = ['80']\nsources = '203.0.113.0/24'\n[metrics]\nlisten = '127.0.0.1:9750'\n",
        f"{OPENS_80} from 203.0.113.0/24 IPv4",
    ),
    *(
        toml(f"{WEB}ports = {bad}\n", 3, said, f"{WEB}ports = {good}\n", BOTH)
        for bad, said, good in (
            ("['80', '443]\n# it's", f"{SECOND} '443']", "['80', '443']\n# it's"),
            ("['80', \"443']", f'{SECOND} "443"]', "['80', \"443\"]"),
            ('["80", "443\']', f'{SECOND} "443"]', '["80", "443"]'),
            ("['80, '443']", ONE_QUOTE, "['80', '443']"),
            ("['80 '443']", ONE_QUOTE, "['80', '443']"),
            ("['80, '443]", ONE_QUOTE, "['80', '443']"),
            ('["80, "443]', ONE_QUOTE, '["80", "443"]'),
        )
    ),
    toml(f"{WEB}ports = [\n'80,\n'443']\n", 4, f"{SECOND} '80',", f"{WEB}ports = [\n'80',\n'443']\n", BOTH),
    *(
        toml(
            f'[[forward]]\ndomain = "{bad}"\nports = ["80"]\n',
            2,
            said,
            f'[[forward]]\ndomain = "{good}"\nports = ["80"]\n',
            f"*:80/tcp -> {domain}:80",
        )
        for bad, said, good, domain in (
            ("we\x01b1", '"\\u0001" stands in this text, which may not hold it; remove it', "web1", "web1"),
            ("a\\u12", BACKSLASH, "a\\\\u12", "a\\u12"),
            ("a\\qemu", BACKSLASH, "a\\\\qemu", "a\\qemu"),
        )
    ),
]
ARRAY, AROUND = (
    "several values are an array, in brackets; write",
    '"[" before the first of them, and "]" after the last',
)
LONG = [f'"{port}"' for port in range(1000, 1020)]
# Arrays without their brackets.
LISTS = [
    *(
        toml(f"{WEB}ports = {bad}\n", 3, said, f"{WEB}ports = {good}\n", BOTH)
        for bad, said, good in (
            ('"80", "443"', f'{ARRAY} ["80", "443"]', '["80", "443"]'),
            ("'80', 443,  # the site", f"{ARRAY} ['80', \"443\"]", "['80', \"443\"]  # the site"),
            ("80, 443", f'{ARRAY} ["80", "443"]', '["80", "443"]'),
            ("80 443", f'{ARRAY} ["80", "443"]', '["80", "443"]'),
            ('"80" "443"', f'{ARRAY} ["80", "443"]', '["80", "443"]'),
            ('"80"; "443"', f'{ARRAY} ["80", "443"]', '["80", "443"]'),
            ('"80" and "443"', f'{ARRAY} ["80", "443"]', '["80", "443"]'),
            ('"80", "443"]', '"[" is missing; write ["80", "443"]', '["80", "443"]'),
            ("80, 443]", '"[" is missing; write ["80", "443"]', '["80", "443"]'),
            ('"80",\n"443"', f"{ARRAY} {AROUND}", '["80",\n"443"]'),
            ('"80",\n"443"]', f'"[" is missing; write {AROUND}', '["80",\n"443"]'),
        )
    ),
    *(
        toml(
            f"{ENTRY_80}sources = {bad}\n",
            4,
            f'{ARRAY} ["203.0.113.0/24", "2001:db8::/48"]',
            f'{ENTRY_80}sources = ["203.0.113.0/24", "2001:db8::/48"]\n',
            f"{OPENS_80} from 203.0.113.0/24,2001:db8::/48",
        )
        for bad in (
            '"203.0.113.0/24", "2001:db8::/48"',
            "203.0.113.0/24, 2001:db8::/48",
            "203.0.113.0/24 2001:db8::/48",
        )
    ),
    toml(
        f'{ENTRY_80}listen = "198.51.100.7" "198.51.100.8"\n',
        4,
        f'{ARRAY} ["198.51.100.7", "198.51.100.8"]',
        f'{ENTRY_80}listen = ["198.51.100.7", "198.51.100.8"]\n',
        "198.51.100.7,198.51.100.8:80/tcp -> web1:80",
    ),
    toml(
        f"{WEB}ports = {', '.join(LONG)}\n",
        3,
        f"{ARRAY} {AROUND}",
        f"{WEB}ports = [{', '.join(LONG)}]\n",
        "; ".join(f"*:{port}/tcp -> web1:{port}" for port in range(1000, 1020)),
    ),
    *(
        toml(
            f'[[forward]]\ndomain = {bad}\nports = ["80"]\n',
            2,
            '"domain" has one value only; write "web1"',
            ENTRY_80,
            OPENS_80,
        )
        for bad in ('"web1", "web2"', "web1, web2", '"web1" "web2"')
    ),
    toml(
        f'{ENTRY_80}interface = "eth0", "eth1"\n',
        4,
        '"interface" has one value only; write "eth0"',
        f'{ENTRY_80}interface = "eth0"\n',
        f"{OPENS_80} on eth0",
    ),
    toml(
        "[daemon]\nip_forward = false, true\n",
        2,
        '"ip_forward" has one value only; write false',
        "[daemon]\nip_forward = false\n",
    ),
]


@pytest.mark.parametrize("case", [*SYNTAX, *MORE_SYNTAX, *QUOTES, *LISTS], ids=lambda case: case.said[:70])
def test_what_is_said_is_right_when_followed(case: Case) -> None:
    follow(case)


def test_every_entry_in_single_brackets_is_named() -> None:
    text = TWO.format("[forward]")
    assert problems_of(text) == [f"portfwd.toml:{line}: is not valid TOML: {SINGLE}" for line in (1, 4)]
    assert opens(read(TWO.format("[[forward]]"))) == "*:1/tcp -> a:1; *:2/tcp -> b:2"
