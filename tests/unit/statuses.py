"""A status with a bit of everything, for the tests of its forms."""

import json
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from fwdaemon import config as configuration
from fwdaemon.config.model import Config
from fwdaemon.config.names import as_pattern
from fwdaemon.core.exposures import Owner
from fwdaemon.core.inventory import Hindrance, HindranceKind
from fwdaemon.core.report import Fault, FaultKind
from fwdaemon.core.state import Desired, Waiting
from fwdaemon.core.types import Family, FleetState, Job, Late, Origin
from fwdaemon.errors import Problem
from fwdaemon.status.model import (
    Configuration,
    Header,
    LibvirtState,
    Pass,
    Process,
    RefusedReload,
    Restored,
    Rules,
    Status,
)
from fwdaemon.status.rows import Facts, Readings, rows
from tests.unit.forwards import forward, nat, route
from tests.unit.saying import STOPPED

MAIN = Path("/etc/portfwd.toml")
HOSTILE = 'web"\x1b[2J[red]\n\u202e' + "x" * 40
INACTIVE = Hindrance(HindranceKind.NETWORK_NOT_ACTIVE)
BEGAN = datetime(2026, 3, 1, 8, 0, tzinfo=UTC)

WAITING = f"""
[[forward]]
domain = "db.internal.example.net"
listen = ["198.51.100.7", "2001:db8::7"]
ports = ["5432", "6000-6009:7000-7009/udp"]

[[forward]]
domain = {json.dumps(as_pattern(HOSTILE))}
interface = "eth0"
sources = ["203.0.113.0/24", "192.0.2.0/24"]
ports = ["7"]

[[nat]]
domain = "mail"
public = "198.51.100.8"

[[route]]
network = "public"
addresses = ["203.0.113.64/29"]
"""

WEB = forward("tcp *:80", "192.168.122.10:80")
WEB6 = forward("tcp *:80", "[2001:db8:122::10]:80")
GAME = forward("udp 198.51.100.7:27015-27030", "192.168.122.50:27015-27030", domain="game", interface="eth0")
NAT = nat("198.51.100.9", "192.168.122.51", domain="post")
ROUTE = route("2001:db8:1::/64", "virbr2", network="lab")
LIVE = Desired().having([WEB, WEB6, GAME, NAT, ROUTE])


def read(text: str = WAITING) -> Config:
    return configuration.parse({MAIN: text})


def waiting(config: Config) -> tuple[Waiting, ...]:
    """Let everything wait."""
    entries = [(entry.domain, entry.origin) for entry in config.forwards]
    entries += [(entry.domain, entry.origin) for entry in config.nats]
    found = [Waiting(Owner(name), STOPPED, origin) for name, origin in entries]
    return (*found, *(Waiting(Owner(item.network, "network"), INACTIVE, item.origin) for item in config.routes))


def status() -> Status:
    config = read()
    wanted = Desired(waiting=waiting(config)).having(LIVE.exposures)
    facts = Facts(
        config,
        wanted,
        wanted,
        refused={Family.IPV6: Fault(FaultKind.HOST_NOT_FORWARDING, ("6",))},
        since={WEB: BEGAN, GAME: BEGAN + timedelta(hours=1)},
    )
    counted = Readings({WEB: 1234, GAME: 0, NAT: 7}, {WEB: (12, 98765), NAT: (1, None)})
    return Status(header(), rows(facts, counted))


def header() -> Header:
    problems = (
        Problem(MAIN, 12, 'forward 3: ports[1]: "99999" is no port; write 1 to 65535'),
        Problem(Path("/etc/portfwd.d/50-lab.toml"), 1, "unknown key"),
    )
    return Header(
        "0.1.0",
        Configuration(MAIN, BEGAN, RefusedReload(BEGAN + timedelta(hours=2), problems)),
        Process(812, BEGAN),
        Rules("nftables", "nftables", "libvirt's rules are in its table libvirt_network"),
        (
            LibvirtState("qemu:///system", connected=True, since=BEGAN),
            LibvirtState("lxc:///system", connected=False, since=BEGAN, last_error="Failed to connect: \x1b[31mno"),
        ),
        Pass(BEGAN + timedelta(hours=3), 0.0123456, changed=True),
        (
            Restored(
                BEGAN + timedelta(hours=3), f"{HOSTILE}: tcp *:80 -> 192.168.122.10:80", 3, "changed by nft, pid 9"
            ),
        ),
        ("no gate in ip filter FORWARD: iptables-nft refuses it",),
        confined=(Family.IPV4,),
        confined_interfaces=("eth1", "x\x85wan0"),
        fleet=FleetState(3, 3, 812, 0.4, 5, (ip_address("198.51.100.8"),)),
        late=(Late(Job.CONNECTIONS, "", 12.25), Late(Job.LIBVIRT, HOSTILE, 61.0), Late(Job.LIBVIRT, "lxc:///", 60.0)),
        lost_lines=17,
        unlogged=5,
    )


def origin(line: int) -> Origin:
    return Origin(MAIN, line)
