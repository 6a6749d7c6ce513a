"""What the tests of the legacy tables share: the tables as text, and changes by iptables' own program."""

import os
import threading
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

from fwdaemon.core.exposures import Exposure
from fwdaemon.core.types import Family
from fwdaemon.legacy.client import HelperClient
from fwdaemon.legacy.model import Change, TableName
from tests.kernel.test_nftables import ALL
from tests.lab.command import run
from tests.lab.rules import foreign_rules, own_rules
from tests.unit.forwards import nat, route

MAIL = nat("198.51.100.8", "192.168.122.51")
SECOND = nat("198.51.100.9", "192.168.122.51")
SIX_MAIL = nat("2001:db8::8", "2001:db8:5::51", domain="six")
ROUTED = route("203.0.113.64/29")
SIX_ROUTED = route("2001:db8:1::/64")
# Exposures of every kind, and all that goes with them.
EVERYTHING = replace(
    ALL.having([MAIL, SECOND, SIX_MAIL, ROUTED, SIX_ROUTED]),
    guest_subnets=frozenset({ip_network("192.168.122.0/24"), ip_network("2001:db8:5::/64")}),
    uplinks=frozenset({"eth0", "wg0"}),
)


def of_ipv4(*kinds: type[Exposure]) -> frozenset[Exposure]:
    """Name the exposures of some kinds in `EVERYTHING`."""
    return frozenset(item for item in EVERYTHING.exposures if item.family is Family.IPV4 and isinstance(item, kinds))


def helpers() -> list[int]:
    children = Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text(encoding="ascii").split()
    return [int(pid) for pid in children if b"fwdaemon.legacy.helper" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def iptables(*arguments: str, family: Family = Family.IPV4) -> None:
    program = "iptables-legacy" if family is Family.IPV4 else "ip6tables-legacy"
    run([program, "-w", *arguments], env=dict(os.environ))


def saved() -> str:
    return "".join(run([f"{program}-legacy-save"]).stdout for program in ("iptables", "ip6tables"))


def foreign() -> str:
    return foreign_rules("", saved())


def own() -> str:
    return own_rules("", saved())


def own_ipsets() -> list[str]:
    """Give all elements of our ipsets, and their names."""
    lines = [line.split() for line in run(["ipset", "save"]).stdout.splitlines()]
    return sorted(" ".join(words[:3]) for words in lines if words[1].startswith("KVMPF_"))


def commit(client: HelperClient, change: Change) -> None:
    with client.locked() as session:
        session.observe({TableName.FILTER: {}}, ())
        session.commit(TableName.FILTER, change)
