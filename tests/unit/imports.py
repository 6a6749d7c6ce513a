"""What tests of the import share: short texts for what was found."""

from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path

from fwdaemon import config
from fwdaemon.config.model import Config
from fwdaemon.core.types import show_endpoint
from fwdaemon.importing.assembling import Owners, assemble
from fwdaemon.importing.findings import Findings, Forward

FILE = Path("FILE")
OWNERS: Owners = {ip_address(text): ("web",) for text in ("10.0.0.9", "192.168.122.10", "2001:db8:122::10")}


def shown(forward: Forward) -> str:
    """A forward on one line: `web 198.51.100.1:80/tcp -> 192.168.122.10:8080 on eth0 from 203.0.113.0/24 at 5`."""
    told = [
        forward.domain or "?",
        f"{show_endpoint(forward.listen, forward.host)}/{forward.protocol}",
        "->",
        show_endpoint(forward.address, forward.guest),
    ]
    if forward.interface is not None:
        told += ["on", forward.interface]
    if forward.sources:
        told += ["from", ",".join(map(str, forward.sources))]
    return " ".join([*told, "at", str(forward.origin.line)])


def forwards(findings: Findings) -> list[str]:
    """Every forward found."""
    return [shown(forward) for forward in findings.forwards if not forward.reason]


def left_out(findings: Findings) -> list[str]:
    """Every forward that is written as a comment, with the reason."""
    return [f"{shown(forward)}: {forward.reason}" for forward in findings.forwards if forward.reason]


def warnings(findings: Findings) -> list[str]:
    """Every warning, with its line."""
    return [f"{remark.origin.line}: {remark.text}" for remark in findings.in_order() if remark.is_warning]


def accepted(found: Sequence[Findings], owners: Owners | None = OWNERS) -> Config:
    """What the configuration made of it says; fails unless it is one, and no control character is in it."""
    text = assemble(found, owners).text
    assert all(letter.isprintable() or letter == "\n" for letter in text)
    return config.parse({Path("made.toml"): text})
