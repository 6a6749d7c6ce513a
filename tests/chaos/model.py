"""What is the case on the host, as far as it was us who brought it about: domains, networks, configuration, faults.

Everything that must follow from it is in `tests.chaos.truth`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from uuid import NAMESPACE_DNS, uuid5

from tests.chaos.admission import ALLOW, LISTS, OFFICE, SETS
from tests.lab.host import PUBLIC4_SECOND

STEADY, STILL = "steady", "still"
# The neighbour of the steady guest, which no entry names.
HOSTILE = "hostile"
# The host part of the addresses: what a guest has first, and how many more it may take in turn.
_FIRST_NUMBER = {"a": 10, "b": 20, "c": 30, "d": 40, STEADY: 50}
_NUMBERS = 5
NETWORKS = {"default": 122, "other": 123, STILL: 121}
PLACES = {"a": "default", "b": "default", "c": "other", "d": "other", STEADY: STILL}
# No port yet, of a forward that is to be given one.
AUTOMATIC = 0
# A name is any text; none of it may become syntax.
RENAMED = 'd "renamed" --jump'


@dataclass(slots=True)
class Domain:
    """One guest. `plugged` says that its interface is on its network's present bridge; `turn` counts its addresses.

    `asks` is what its own definition asks for, as `asking` does.
    """

    key: str
    name: str
    turn: int = 0
    defined: bool = True
    running: bool = True
    plugged: bool = True
    asks: str = "nothing"

    @property
    def network(self) -> str:
        """The network it is plugged into."""
        return PLACES[self.key]

    @property
    def uuid(self) -> str:
        """Its UUID, which a new name does not change."""
        return str(uuid5(NAMESPACE_DNS, self.key))

    @property
    def address4(self) -> str:
        """The IPv4 address it has now."""
        return f"192.168.{NETWORKS[self.network]}.{self._number}"

    @property
    def address6(self) -> str:
        """The IPv6 address it has now."""
        return f"2001:db8:{NETWORKS[self.network]}::{self._number}"

    @property
    def _number(self) -> int:
        return _FIRST_NUMBER[self.key] + self.turn % _NUMBERS

    def address(self, version: int) -> str:
        """The address of one family."""
        return self.address4 if version == 4 else self.address6


@dataclass(frozen=True, slots=True)
class Port:
    """Ports of the host, of one protocol, on one address or all, that lead to as many ports of a guest from `guest`."""

    first: int
    guest: int
    protocol: str = "tcp"
    listen: str | None = None
    width: int = 1

    @property
    def word(self) -> str:
        """How the configuration writes it."""
        if self.first == AUTOMATIC:
            return f"auto:{self.guest}/{self.protocol}"
        host, guest = (f"{start}-{start + self.width - 1}" if self.width > 1 else f"{start}" for start in self._starts)
        return f"{f'{self.listen}:' if self.listen else ''}{host}:{guest}/{self.protocol}"

    @property
    def _starts(self) -> tuple[int, int]:
        return self.first, self.guest


@dataclass(frozen=True, slots=True)
class Entry:
    """A `[[forward]]`, or with `public` a `[[nat]]`. `reserved` leaves it to libvirt to know the address.

    `limits` is a line of the configuration, and `log` has its connections written down.
    """

    domain: str
    ports: tuple[Port, ...] = ()
    version: int = 4
    reserved: bool = False
    by_uuid: bool = False
    source: str | None = None
    public: str | None = None
    limits: str = ""
    log: bool = False

    def toml(self, domain: Domain) -> str:
        """Write it for the configuration."""
        lines = [f"[[{'nat' if self.public else 'forward'}]]"]
        lines.append(f'domain = "{domain.uuid if self.by_uuid else self.domain}"')
        if not self.reserved:
            lines.append(f'address = "{domain.address(self.version)}"')
        if self.public:
            lines.append(f'public = "{self.public}"\nassign = "eth0"')
        else:
            lines.append(f"ports = [{', '.join(f'{chr(34)}{port.word}{chr(34)}' for port in self.ports)}]")
        if self.source:
            lines.append(f'sources = ["{self.source}"]')
        if self.limits:
            lines.append(self.limits)
        if self.log:
            lines.append("log = true")
        return "\n".join([*lines, ""])


# Of two forwards that are limited for each source: the ports.
RATED, COUNTED = 9010, 9011
# Any choice of them is valid. The first ones are always chosen, and no round touches what they lead to.
ENTRIES = {
    "steady": Entry(STEADY, (Port(9000, 9000), Port(9001, 9001, "udp"))),
    "steady6": Entry(STEADY, (Port(9000, 9000),), version=6),
    "steady-nat": Entry(STEADY, public="198.51.100.9"),
    "steady-rate": Entry(STEADY, (Port(RATED, 9000),), limits='rate = "3/hour"'),
    "steady-open": Entry(STEADY, (Port(COUNTED, 9000),), limits="max_open = 2", log=True),
    "steady-automatic": Entry(STEADY, (Port(AUTOMATIC, 80),)),
    "a-learned": Entry("a", (Port(8000, 80),), reserved=True),
    "a-sources": Entry("a", (Port(8003, 80),), reserved=True, source="203.0.113.0/24"),
    "b-configured": Entry("b", (Port(8001, 80), Port(5300, 9001, "udp"))),
    "b-automatic": Entry("b", (Port(AUTOMATIC, 80),)),
    "b-ipv6": Entry("b", (Port(8001, 80),), version=6),
    "b-before-a": Entry("b", (Port(8000, 80, listen=PUBLIC4_SECOND),)),
    "c-one-address": Entry("c", (Port(8002, 443, listen=PUBLIC4_SECOND),)),
    "c-range": Entry("c", (Port(8079, 79, width=3),)),
    "c-office": Entry("c", (Port(8006, 443),), source=f"set:{OFFICE}"),
    "c-nat": Entry("c", public="198.51.100.8"),
    "d-name": Entry("d", (Port(8004, 80),)),
    "d-uuid": Entry("d", (Port(8005, 80),), by_uuid=True),
}
# What is opened for a while, beside whatever is configured.
TEMPORARY = Entry("a", (Port(8010, 80, listen=PUBLIC4_SECOND),), reserved=True)
# What a domain is allowed to ask for in its own definition, and the port of what it is not.
ASKED = Entry("a", (Port(8020, 80, listen=PUBLIC4_SECOND),), reserved=True)
REFUSED = 8030
# Without these the daemon can bring about nothing; of the lock, only what is in iptables-legacy.
_NEEDED, _LEGACY_NEEDS = {"threads", "descriptors", "nft"}, {"lock"}
ALWAYS = tuple(name for name in ENTRIES if name.startswith(STEADY))
_HEAD = """\
[daemon]
libvirt = ["lxc:///system"]
resync = "1h"
localhost = true
on_stop = "{on_stop}"
keep_guests_online = true
auto_ports = "20000-20009"
deny = ["set:banned", "set:listed"]
[metrics]
listen = "127.0.0.1:9750"
textfile = "/var/lib/kvm-portfwd/metrics.prom"
"""


@dataclass(slots=True)
class World:
    """The model. `daemon` is up, paused or down; `knows` says that it has had an answer from libvirt.

    `opened` says that something is open for a while. `removed` says that all rules of ours were taken away on purpose,
    and have not come back yet. `short` names what there is not enough of, as `shortages` does. `legacy` says that our
    rules are in iptables-legacy. `automatic` says which port a domain was given. Of the sets, `banned` is what others
    hold in theirs, `listed` names what the file held when it was last right, and `misread` says that it is wrong now.
    """

    domains: dict[str, Domain] = field(default_factory=lambda: {key: Domain(key, key) for key in PLACES})
    networks: dict[str, bool] = field(default_factory=lambda: dict.fromkeys(NETWORKS, True))
    entries: tuple[str, ...] = tuple(ENTRIES)
    libvirtd: bool = True
    daemon: str = "up"
    knows: bool = True
    opened: bool = False
    removed: bool = False
    short: set[str] = field(default_factory=set)
    legacy: bool = False
    automatic: dict[str, int] = field(default_factory=dict)
    banned: set[str] = field(default_factory=set)
    listed: str = "empty"
    misread: bool = False

    def config(self, on_stop: str = "keep", entries: tuple[str, ...] | None = None) -> str:
        """The configuration in force, as text, or another with these entries."""
        chosen = [ENTRIES[name] for name in (self.entries if entries is None else entries)]
        written = [entry.toml(self.domains[entry.domain]) for entry in chosen]
        return "".join([_HEAD.format(on_stop=on_stop), SETS, ALLOW, *written])

    @property
    def denied(self) -> frozenset[str]:
        """Who may connect to nothing."""
        return frozenset(self.banned).union(LISTS[self.listed])

    @property
    def wanted(self) -> Iterator[Entry]:
        """What is to be open while its domain runs."""
        yield from (self.resolved(ENTRIES[name]) for name in self.entries)
        if self.opened:
            yield TEMPORARY
        if self.domains[ASKED.domain].asks == "allowed":
            yield ASKED

    def resolved(self, entry: Entry) -> Entry:
        """Put the port in that its domain was given, where none is named."""
        given = self.automatic.get(entry.domain, AUTOMATIC)
        return replace(entry, ports=tuple(replace(port, first=port.first or given) for port in entry.ports))

    @property
    def active_networks(self) -> frozenset[str]:
        """The networks that are active."""
        return frozenset(name for name, active in self.networks.items() if active)

    @property
    def can_settle(self) -> bool:
        """Whether the daemon has all it needs to make the truth true."""
        return (
            self.daemon == "up"
            and self.knows
            and not self.short & (_NEEDED | (_LEGACY_NEEDS if self.legacy else set()))
        )
