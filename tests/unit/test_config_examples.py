"""The example configurations: that they are right, and that they mean what their comments say."""

from collections.abc import Iterable
from pathlib import Path
from typing import Final

import pytest
import tomli

from fwdaemon.config import load
from fwdaemon.config.model import Config, DaemonSettings, ForwardEntry

EXAMPLES: Final = Path(__file__).parents[2] / "etc" / "examples"
FILES: Final = sorted(EXAMPLES.glob("*.toml"))


def example(name: str) -> Config:
    config = load(EXAMPLES / f"{name}.toml")
    assert config.daemon == DaemonSettings()
    return config


def ports_of(entries: Iterable[ForwardEntry]) -> dict[str, list[str]]:
    return {
        entry.domain: [f"{mapping.host} to {mapping.guest}/{mapping.protocol}" for mapping in entry.mappings]
        for entry in entries
    }


def test_every_example_is_explained_here() -> None:
    assert [file.name for file in FILES] == [
        "an-address-per-guest.toml",
        "bgp.toml",
        "one-public-address.toml",
        "routed-prefixes.toml",
    ]


def test_one_public_address() -> None:
    config = example("one-public-address")
    assert ports_of(config.forwards) == {
        "web": ["80 to 80/tcp", "443 to 443/tcp"],
        "mail": ["25 to 25/tcp", "110 to 110/tcp", "143 to 143/tcp", "8080 to 80/tcp", "8443 to 443/tcp"],
    }
    assert all(entry.listen == () for entry in config.forwards)
    assert (config.nats, config.routes) == ((), ())


def test_an_address_per_guest() -> None:
    config = example("an-address-per-guest")
    assert [(entry.domain, str(entry.public), entry.assign, entry.address) for entry in config.nats] == [
        ("shop", "198.51.100.8", "eth0", None),
        ("mail", "198.51.100.9", "eth0", None),
    ]
    assert (config.forwards, config.routes) == ((), ())


def test_routed_prefixes() -> None:
    config = example("routed-prefixes")
    assert [(entry.network, str(entry.subnet), entry.proxy) for entry in config.routes] == [
        ("public", "203.0.113.64/29", "eth0"),
        ("public", "2001:db8:1::/64", "eth0"),
    ]
    assert (config.forwards, config.nats) == ((), ())


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_example_is_short_explained_and_names_the_schema(file: Path) -> None:
    text = file.read_text()
    schema, explanation, *_ = text.splitlines()
    assert (file.parent / schema.removeprefix("#:schema ")).resolve().name == "schema.json"
    assert (file.parent / schema.removeprefix("#:schema ")).is_file()
    assert explanation.startswith("# ")
    assert 0 < len(tomli.loads(text)) <= 3


def test_bgp() -> None:
    """What it announces by BIRD is shown in tests/host/test_bgp.py."""
    config = example("bgp")
    assert {(entry.domain, str(entry.public), entry.assign) for entry in config.nats} == {
        ("shop", "198.51.100.65", "lo"),
        ("shop", "2001:db8:64::65", "lo"),
    }
