"""Asks the host: the kernel, its rule systems, its processes. It should be run by root."""

import errno
import re
import signal
import socket
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from ipaddress import ip_address, ip_network
from itertools import product
from pathlib import Path
from typing import Any, Final

from fwdaemon.config.loader import read_list_file
from fwdaemon.config.names import NFT_NAME
from fwdaemon.core.admission import Element, Place, Ranges
from fwdaemon.core.inventory import HostAddress
from fwdaemon.core.state import Desired
from fwdaemon.core.text import GrammarError, shown
from fwdaemon.core.types import Address, Family, Listener, Subnet
from fwdaemon.errors import KernelError, PortfwdError, ProcessError
from fwdaemon.explain.far_probe import ask_from_afar
from fwdaemon.explain.report import MAIN_TABLE, FarAnswer, GuestAnswer, RouteAnswer
from fwdaemon.kernel import sysctl
from fwdaemon.kernel.listeners import Holders, listeners
from fwdaemon.kernel.observe import answers_now, observe_host
from fwdaemon.kernel.process import Runner
from fwdaemon.legacy.client import at_limits
from fwdaemon.legacy.ipsets import elements_in
from fwdaemon.legacy.model import SET_MATCH
from fwdaemon.legacy.model import set_name as ipset_name
from fwdaemon.nftables.admission import limiting_sets, set_name
from fwdaemon.nftables.existing import elements_of, hooked_chains, is_iptables
from fwdaemon.nftables.external import bounds_of, paired
from fwdaemon.nftables.model import TABLE_NAME
from fwdaemon.nftables.table_cache import limited_sources
from fwdaemon.rulesets import nft_listing, xt_listing
from fwdaemon.rulesets.packet import BaseChain, System

# The sets of ours that rules look sources up in.
_SETS: Final = re.compile(rf"{SET_MATCH} (KVMPF_\S+) src")
_PROC: Final = Path("/proc")
# Of this thread, since a network namespace is a thread's.
_OWN: Final = _PROC / "thread-self"
_LINKS: Final = Path("/sys/class/net")
_IFF_UP: Final = 0x1  # net/if.h
# linux/rtnetlink.h: tell the route that decides, and the table it is in.
_TELL_ROUTE: Final = 0x2000 | 0x1000
_RTN_LOCAL: Final = 2
# RTN_BLACKHOLE and its like, linux/rtnetlink.h, as ip-route(8) calls them.
_DEAD_ENDS: Final = {6: "blackhole", 7: "unreachable", 8: "prohibit"}
# FIB_RULE_INVERT of linux/fib_rules.h, where the actions have the same numbers; and what is not asked about there.
_INVERTED: Final = 0x2
_OTHER_SELECTORS: Final = tuple(
    f"FRA_{name}" for name in ("OIFNAME", "FWMARK", "L3MDEV", "UID_RANGE", "IP_PROTO", "SPORT_RANGE", "DPORT_RANGE")
)
_LOOPBACK: Final = "lo"
_INNER: Final = frozenset({"veth", "dummy", "ifb"})
_PATIENCE_S: Final = 2.0
_DISCARD: Final = 9  # RFC 863
_UNREACHABLE: Final = frozenset({errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN})


@dataclass(frozen=True, slots=True)
class _Link:
    """An interface, of a `kind` as ip-link(8) calls it, and the number of what it is plugged into."""

    index: int
    kind: str
    bridge: int | None


class Kernel:
    """The host this program runs on; see `report.World`. What is listed whole is listed once."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def addresses(self) -> tuple[HostAddress, ...]:
        """See `World.addresses`."""
        return self._addresses

    def chains(self) -> Sequence[BaseChain]:
        """See `World.chains`."""
        return self._chains

    def route(self, to: Address, source: Address | None = None, came_in: str | None = None) -> RouteAnswer:
        """See `World.route`."""
        from pyroute2 import IPRoute  # noqa: PLC0415  takes 150 ms to import
        from pyroute2.netlink.exceptions import NetlinkError  # noqa: PLC0415  the same

        names = dict(socket.if_nameindex())
        asked: dict[str, Any] = {"dst": str(to)}
        if source is not None and came_in is not None:
            indices = {name: index for index, name in names.items()}
            if came_in not in indices:
                return RouteAnswer(None)
            asked |= {"src": str(source), "iif": indices[came_in]}
        else:
            asked["flags"] = _TELL_ROUTE
        with IPRoute() as rtnetlink:
            try:
                answers = list(rtnetlink.route("get", **asked))
            except NetlinkError:  # the ways to say that there is no way are many
                domain = Family.of(to).domain
                rule = _dead_rule(rtnetlink.get_rules(family=domain), to, source, came_in or _LOOPBACK)
                return RouteAnswer(None, rule=rule) if rule else _dead_end(rtnetlink.get_routes(family=domain), to)
        return _route_answer(answers[0], names, to)

    def gateway_on(self, device: str, family: Family) -> Address | None:
        """See `World.gateway_on`."""
        from pyroute2 import IPRoute  # noqa: PLC0415  takes 150 ms to import

        index = {name: number for number, name in socket.if_nameindex()}.get(device)
        with IPRoute() as rtnetlink:
            listed = rtnetlink.get_routes(family=family.domain)
            routes = [route for route in listed if route.get_attr("RTA_OIF") == index]
        gateways = (route.get_attr("RTA_GATEWAY") for route in sorted(routes, key=lambda route: int(route["dst_len"])))
        return next((ip_address(gateway) for gateway in gateways if gateway), None)

    def listeners(self) -> Sequence[Listener]:
        """See `World.listeners`."""
        return listeners()

    def holder(self, listener: Listener) -> str | None:
        """See `World.holder`."""
        return Holders().name([listener]).get(listener.inode)

    def sysctl(self, name: str) -> str:
        """See `World.sysctl`."""
        return sysctl.read(name)

    def bridge_of(self, device: str) -> str | None:
        """See `World.bridge_of`."""
        try:
            return (_LINKS / device / "master").readlink().name
        except OSError:
            return None

    def in_hairpin_mode(self, device: str) -> bool:
        """See `World.in_hairpin_mode`."""
        return _read(_LINKS / device / "brport/hairpin_mode") == "1"

    def is_up(self, device: str) -> bool | None:
        """See `World.is_up`."""
        flags = _read(_LINKS / device / "flags")
        return None if flags is None else bool(int(flags, 16) & _IFF_UP)

    def is_inner(self, device: str) -> bool:
        """See `World.is_inner`."""
        plugged = self._kinds.get(device)
        if plugged is None or plugged.kind != "bridge":
            return plugged is not None and plugged.kind in _INNER
        ports = [link.kind for link in self._kinds.values() if link.bridge == plugged.index]
        return not ports or "veth" in ports

    def daemon(self) -> int | None:
        """See `World.daemon`."""
        return next((int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit() and _is_daemon(entry)), None)

    def ranges(self, names: Collection[str]) -> Mapping[Place, Ranges]:
        """See `World.ranges`; a set that is not there is empty."""
        found: dict[Place, Ranges] = {}
        for family, name in product(Family, names):
            elements: list[Element] = []
            with suppress(KernelError):
                messages = elements_of(family, set_name(name, family, 0))
                elements += paired((item for each in messages for item in bounds_of(each)), family)
            with suppress(ProcessError):
                elements += elements_in(self._runner, ipset_name(name, family), family)
            found[family, name] = Ranges(elements)
        return found

    def over_limit(self, desired: Desired, counted_as: str, source: Address) -> int | None:
        """See `World.over_limit`."""
        found = 0
        for name in limiting_sets(counted_as):
            with suppress(ProcessError):  # there is no such limit, or the rules are elsewhere
                where = Family.of(source).word, TABLE_NAME, name
                listing = self._runner.run("nft", "list", "set", *where).stdout
                found += limited_sources(listing).get(counted_as, {}).get(source, 0)
        alike = [item for item in desired.limited if item.counted_as == counted_as]
        return found or (None if source in at_limits(alike, desired.label).get(counted_as, {}) else 0)

    def text_of(self, file: Path) -> bytes:
        """See `World.text_of`."""
        try:
            return read_list_file(file)
        except GrammarError:
            return b""

    def is_on_link(self, address: Address) -> bool:
        """See `World.is_on_link`; any packet has the kernel ask its neighbours."""
        with socket.socket(Family.of(address).domain, socket.SOCK_DGRAM) as asking, suppress(OSError):
            asking.connect((str(address), _DISCARD))
            asking.send(b"")
        return answers_now(address)

    def ask_guest(self, address: Address, port: int) -> GuestAnswer:
        """See `World.ask_guest`."""
        try:
            with socket.create_connection((str(address), port), timeout=_PATIENCE_S):
                return GuestAnswer.ANSWERS
        except TimeoutError:
            return GuestAnswer.SILENT if self._is_there(address) else GuestAnswer.UNREACHABLE
        except PermissionError:
            return GuestAnswer.FORBIDDEN
        except OSError as error:
            return GuestAnswer.UNREACHABLE if error.errno in _UNREACHABLE else GuestAnswer.REFUSES

    def ask_from_afar(self, address: Address, port: int, device: str, source: Address) -> FarAnswer:
        """See `World.ask_from_afar`."""
        return ask_from_afar(address, port, device, source)

    def _is_there(self, address: Address) -> bool:
        """Whether a machine on the link answers for an address that was just asked for."""
        return self.route(address).gateway is not None or answers_now(address)

    @cached_property
    def _addresses(self) -> tuple[HostAddress, ...]:
        return observe_host().addresses

    @cached_property
    def _kinds(self) -> dict[str, "_Link"]:
        from pyroute2 import IPRoute  # noqa: PLC0415  takes 150 ms to import

        with IPRoute() as rtnetlink:
            return {str(link.get_attr("IFLA_IFNAME")): _link(link) for link in rtnetlink.get_links()}

    @cached_property
    def _chains(self) -> Sequence[BaseChain]:
        try:
            hooked = hooked_chains()
            texts = nft_listing.rule_texts(self._runner.run("nft", "-t", "-s", "-a", "list", "ruleset").stdout)
        except PortfwdError as error:
            raise KernelError(f"the rules cannot be listed, run it as root: {error}") from error
        written = [chain for family in Family for chain in self._iptables(family, System.IPTABLES_NFT)]
        # iptables shows chains that are not there as empty ones, and nft what iptables alone can read.
        better = {str(chain) for chain in written} & {str(chain) for chain in hooked if is_iptables(chain)}
        native = self._native({(chain.family, chain.table) for chain in hooked if str(chain) not in better}, texts)
        return [
            *(chain for chain in native if str(chain) not in better),
            *(chain for chain in written if str(chain) in better),
            *(chain for family in Family for chain in self._iptables(family, System.LEGACY)),
        ]

    def _native(self, tables: Collection[nft_listing.TableName], texts: nft_listing.Texts) -> list[BaseChain]:
        """List everything; where `nft` ends at a name that is no text, these tables one by one."""
        try:
            return nft_listing.base_chains(self._runner.run("nft", "-j", "list", "ruleset").stdout, texts)
        except ProcessError as error:
            if error.returncode != -signal.SIGABRT:
                raise KernelError(f"the rules cannot be listed: {error}") from error
        return [chain for family, table in sorted(tables) for chain in self._of_table(family, table, texts)]

    def _of_table(self, family: str, table: str, texts: nft_listing.Texts) -> list[BaseChain]:
        try:
            if not NFT_NAME.fullmatch(table):  # what nft might take for more than a name
                raise KernelError(f"the table {family} {shown(table)} has a name that nft cannot be asked for")
            listing = self._runner.run("nft", "-j", "list", "table", family, table).stdout
        except ProcessError as error:
            raise KernelError(f"the table {family} {table} cannot be listed: {error}") from error
        return nft_listing.base_chains(listing, texts)

    def _iptables(self, family: Family, system: System) -> list[BaseChain]:
        """List what one variant of iptables wrote; nothing where it is not installed, or never wrote anything."""
        names = "ip_tables_names" if family is Family.IPV4 else "ip6_tables_names"
        if system is System.LEGACY and not _read(_OWN / "net" / names):
            return []
        program = f"{'iptables' if family is Family.IPV4 else 'ip6tables'}-{system.removeprefix('iptables-')}-save"
        try:
            save = self._runner.run(program).stdout
            return xt_listing.base_chains(save, system, family, self._members(save, family))
        except ProcessError:
            return []

    def _members(self, save: str, family: Family) -> dict[str, Ranges]:
        """Read who is in the sets of ours that rules look sources up in."""
        found = {}
        for name in set(_SETS.findall(save)):
            with suppress(ProcessError):
                found[name] = Ranges(elements_in(self._runner, name, family))
        return found


def _link(message: Any) -> _Link:
    about = message.get_attr("IFLA_LINKINFO")
    kind = "" if about is None else str(about.get_attr("IFLA_INFO_KIND"))
    return _Link(message["index"], kind, message.get_attr("IFLA_MASTER"))


def _route_answer(message: Any, names: dict[int, str], to: Address) -> RouteAnswer:
    gateway, found = message.get_attr("RTA_GATEWAY"), message.get_attr("RTA_DST")
    length = message["dst_len"]
    # Only a default route has no destination.
    subnet = ip_network(f"{found}/{length}" if found else f"{to}/0", strict=False)
    return RouteAnswer(
        device=names.get(message.get_attr("RTA_OIF") or 0),
        gateway=ip_address(gateway) if gateway else None,
        local=message["type"] == _RTN_LOCAL,
        subnet=subnet,
        table=message.get_attr("RTA_TABLE") or MAIN_TABLE,
        kind=_DEAD_ENDS.get(message["type"], ""),
    )


def _dead_end(messages: Iterable[Any], to: Address) -> RouteAnswer:
    """Give the route that is there to lead nowhere, if there is one; the kernel only says that it leads nowhere."""
    found = (_route_answer(message, {}, to) for message in messages if message["type"] in _DEAD_ENDS)
    covering = [answer for answer in found if answer.subnet is not None and to in answer.subnet]
    return max(covering, key=lambda answer: answer.subnet.prefixlen if answer.subnet else 0, default=RouteAnswer(None))


def _dead_rule(messages: Iterable[Any], to: Address, source: Address | None, came_in: str) -> str:
    """Give the first rule of policy routing that leads such a packet nowhere, if there is one; it has no mark."""
    leading = (message for message in messages if message["action"] in _DEAD_ENDS)
    ordered = sorted(leading, key=lambda message: message.get_attr("FRA_PRIORITY") or 0)
    found = (message for message in ordered if _selects(message, to, source, came_in))
    return next((_shown_rule(message) for message in found), "")


def _selects(message: Any, to: Address, source: Address | None, came_in: str) -> bool:
    """Whether a rule selects a packet; one that does so by negation, or by more than this, is not understood."""
    if message["flags"] & _INVERTED or any(message.get_attr(name) for name in _OTHER_SELECTORS):
        return False
    there, here = (_selected(message, end) for end in ("dst", "src"))
    device = message.get_attr("FRA_IIFNAME")
    return (there is None or to in there) and (here is None or source in here) and device in (None, came_in)


def _selected(message: Any, end: str) -> Subnet | None:
    address = message.get_attr(f"FRA_{end.upper()}")
    return None if address is None else ip_network(f"{address}/{message[f'{end}_len']}", strict=False)


def _shown_rule(message: Any) -> str:
    """Write a rule as ip-rule(8) does."""
    source, destination, device = _selected(message, "src"), _selected(message, "dst"), message.get_attr("FRA_IIFNAME")
    to, by = f" to {destination}" if destination else "", f" iif {device}" if device else ""
    return shown(f"from {source or 'all'}{to}{by} {_DEAD_ENDS[message['action']]}")


def _is_daemon(process: Path) -> bool:
    """Whether a process is the daemon, in this network namespace: that of a guest may run one of its own."""
    try:
        words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
        elsewhere = (process / "ns/net").readlink() != (_OWN / "ns/net").readlink()
    except OSError:
        return False
    if elsewhere or "run" not in words:
        return False
    before = words[: words.index("run")]
    return before[-2:] == ["-m", "fwdaemon"] or (bool(before) and Path(before[-1]).name == "kvm-portfwd")


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
