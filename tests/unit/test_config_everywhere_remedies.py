"""Each remedy for addresses that stand for all of them, followed to the letter, opens no more than its text said."""

import pytest

from tests.unit.remedies import ENTRY_80, OPENS_80, WEB, Case, follow, opens
from tests.unit.test_config_support import problems_of, read

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


@pytest.mark.parametrize("case", EVERYWHERE, ids=lambda case: case.said[:70])
def test_what_is_said_is_right_when_followed(case: Case) -> None:
    follow(case)


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
