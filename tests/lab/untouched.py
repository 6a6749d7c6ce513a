"""The main network of the machine, which no test may change: what a session finds there and leaves there."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.lab.command import run

_NETWORK = Path("/proc/thread-self/ns/net")
_SETTINGS = Path("/proc/sys/net")
_LISTINGS = (
    ("ip", "-brief", "link"),
    ("ip", "-brief", "address"),
    ("ip", "rule"),
    ("ip", "-6", "rule"),
    ("ip", "route", "show", "table", "all"),
    ("nft", "--stateless", "list", "ruleset"),
    ("iptables-legacy-save",),
    ("ip6tables-legacy-save",),
)


@contextmanager
def network_untouched() -> Iterator[None]:
    """Check at the end that links, addresses, routes, rules and settings are what they were, and we where we were."""
    home, before = _NETWORK.readlink(), _all()
    yield
    assert _NETWORK.readlink() == home, "a test left its thread in a network namespace"
    after = _all()
    different = [f"{name}:\n{before.get(name)}\nis now\n{after.get(name)}" for name in before | after]
    changed = [
        text for name, text in zip(before | after, different, strict=True) if before.get(name) != after.get(name)
    ]
    assert not changed, "the machine's own network was changed, " + "\n".join(changed)


def _all() -> dict[str, str]:
    listings = {" ".join(argv): _plain(run(argv).stdout) for argv in _LISTINGS}
    return listings | dict(_settings())


def _plain(listing: str) -> str:
    """Leave out the dates in comments, packet counters and how long an address or route lives."""
    return "\n".join(line.partition(" expires ")[0] for line in listing.splitlines() if line[:1] not in "#:")


def _settings() -> Iterator[tuple[str, str]]:
    """Each setting that can be written; what cannot is a measurement, or not of a namespace."""
    for directory, _, names in os.walk(_SETTINGS):
        for path in (Path(directory, name) for name in names):
            with suppress(OSError):  # some can only be written, and a link may go meanwhile
                if path.stat().st_mode & 0o200:
                    yield str(path), path.read_text(encoding="ascii", errors="replace")
