"""What to do about each cause, in one sentence that can be followed to the letter. Pure.

Commands are set off by `report.command`. A name from outside is in one only where it cannot be read as anything else.
"""

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from ipaddress import ip_network
from typing import Final

from fwdaemon.config.model import GuestEntry
from fwdaemon.config.names import as_pattern
from fwdaemon.config.sets import place_of
from fwdaemon.core.admission import Admission, Refusal, SourceSet
from fwdaemon.core.inventory import Domain
from fwdaemon.core.text import is_interface_name, quote, shown
from fwdaemon.core.types import Address, Family, Gate, Origin, Protocol, Subnet
from fwdaemon.explain.arrival import Arrival, Claim
from fwdaemon.explain.report import MAIN_TABLE, RELOAD, START_COMMAND, RouteAnswer, World, command
from fwdaemon.kernel.sysctl import FORWARDING, of_interface
from fwdaemon.rulesets.packet import BaseChain, RuleLocation, System

START_SERVICE: Final = f"Start the service: {START_COMMAND}."
START_LIBVIRT: Final = f"start libvirt, {command('systemctl start libvirtd')}"

# What puts a rule there: for nft where that is so, and else for iptables.
_AT_HEAD: Final = {True: "insert", False: "-I"}
_AT_END: Final = {True: "add", False: "-A"}
_FIREWALLD: Final = "/etc/firewalld/firewalld.conf"
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


# --- the configuration -----------------------------------------------------------------------------------------------


def write(what: str, origin: Origin) -> str:
    """Say to write something at a place of the configuration, and to load it."""
    return f"Write {what} in {origin}, and {RELOAD}."


def claim_port(near: Claim | None, arrival: Arrival, file: str) -> str:
    """Say how to have a port forwarded that no entry claims."""
    if near is None or near.mapping is None:
        return f"Write a [[forward]] with this port into {file}, and {RELOAD}."
    mapping = near.mapping
    if near.interface is not None and near.everywhere and arrival.from_host:
        return other_interface(near, arrival)
    if near.listen and mapping.protocol is arrival.protocol and arrival.port in mapping.host:
        where = " or ".join(str(address) for address in near.listen)
        return f"Connect to {where} instead, where {near.origin} {near}."
    port = min(max(arrival.port, mapping.host.first), mapping.host.last) + mapping.shift
    suffix = "" if arrival.protocol is Protocol.TCP else f"/{arrival.protocol}"
    return (
        f'Add "{arrival.port}:{port}{suffix}" to ports in {near.origin}, and {RELOAD};'
        f" the nearest that is forwarded is {near.listens_at()}."
    )


def admit(claim: Claim, source: Address) -> str:
    """Say how to let a client connect."""
    return f'Add "{source}/{source.max_prefixlen}" to sources in {claim.entry.origin}, and {RELOAD}.'


def other_interface(claim: Claim, arrival: Arrival) -> str:
    """Say how to have a forward take what comes in by another interface."""
    if arrival.from_host:
        return f"Connect from outside through {claim.interface}: no connection of the host itself comes in there."
    return (
        f'Connect through {claim.interface}, or write interface = "{shown(arrival.came_in)}" in {claim.entry.origin}'
        f" and {RELOAD}."
    )


def name_domain(entry: GuestEntry, known: Iterable[str]) -> str:
    """Say how to name a domain that exists."""
    names = sorted(known)
    close = get_close_matches(entry.domain, names, n=1)
    if close:
        return write(f"domain = {quote(as_pattern(close[0]))}", entry.origin)
    return f"Define domain {quote(entry.domain)} in libvirt, or write another domain in {entry.origin} and {RELOAD}."


# --- libvirt, and how guests are plugged in --------------------------------------------------------------------------


def start_domain(domain: Domain, uri: str) -> str:
    """Say how to start a domain."""
    name = domain.name if _PLAIN.fullmatch(domain.name) else str(domain.uuid)
    return f"Start the domain: {command(_virsh(uri, 'start', name))}."


def start_network(name: str, uri: str, plugs: Iterable[tuple[str, str]]) -> str:
    """Say how to start a network; `plugs` are devices of guests and the bridges they were on before it stopped."""
    if not _PLAIN.fullmatch(name):
        return f"Start network {shown(name)}, then plug its guests in again."
    commands = [command(_virsh(uri, "net-start", name)), *(command(plug) for plug in map(_plug, plugs) if plug)]
    again = ", and plug the guest in again" if len(commands) > 1 else ""
    return f"Start the network{again}: {', '.join(commands)}."


def plug_in(device: str, bridge: str) -> str:
    """Say how to put a guest's interface back into its bridge."""
    plug = _plug((device, bridge))
    return f"Plug the guest in again: {command(plug)}." if plug else f"Plug {shown(device)} into {shown(bridge)} again."


def give_interface(domain: Domain, uri: str, network: str | None) -> str:
    """Say how to have the host reach a guest, by one more interface; `network` is one of libvirt's."""
    what = "give the guest an interface on a libvirt network"
    if network is None or not _PLAIN.fullmatch(network):
        return f"{what}, and have it take an address there."
    name = domain.name if _PLAIN.fullmatch(domain.name) else str(domain.uuid)
    attach = command(_virsh(uri, "attach-interface", name, "network", network, "--live", "--config"))
    return f"{what}, {attach}, and have it take an address there."


def _plug(plug: tuple[str, str]) -> str:
    device, bridge = plug
    plain = is_interface_name(device) and is_interface_name(bridge)
    return f"ip link set {device} master {bridge}" if plain else ""


def _virsh(uri: str, *words: str) -> str:
    return shlex.join(["virsh", "-c", uri, *words])


# --- the kernel ------------------------------------------------------------------------------------------------------


WAIT_FOR_ADDRESS: Final = (
    f"Do not add it by hand: {command('kvm-portfwd status')} says what it waits for, and, for an entry of a table"
    f" that many hosts share, {command('kvm-portfwd fleet status')} which host has it."
)


def hold_address(address: Address, subnet: Subnet | None, device: str, other: str) -> str:
    """Say how to give the host an address; `other` is one that it has."""
    length = subnet.prefixlen if subnet is not None else address.max_prefixlen
    if not is_interface_name(device):
        return f"Give this host the address, or connect to one that it has, {other}."
    adding = command(f"ip address add {address}/{length} dev {device}")
    return f"Give this host the address, {adding}, or connect to one that it has, {other}."


def set_sysctl(name: str, value: int) -> str:
    """Say how to change a setting, by sysctl(8)'s name."""
    return f"Change the setting: {command(shlex.join(['sysctl', '-w', f'{name}={value}']))}."


def make_router(family: Family, main: str) -> str:
    """Say that nothing but our exposures is forwarded, as before us, and how to have the host forward everything."""
    name = FORWARDING[family]
    return (
        f"This is on purpose: IPv{family} forwarding was off before kvm-portfwd turned it on, so only what its entries"
        " name is forwarded, and what libvirt forwards for its networks. If this host is to be a router for everything,"
        f" write {name} = 1 in /etc/sysctl.d and ip_forward = false under [daemon] in {main}, {RELOAD}, and then"
        f" {command('sysctl --system')}."
    )


def forward_from(device: str, main: str) -> str:
    """Give the same of what comes in by one interface, on which forwarding was off."""
    name = shown(of_interface(Family.IPV4, device, "forwarding"))
    return (
        f"This is on purpose: {name} was 0 before kvm-portfwd turned it on, so only what its entries name is forwarded"
        f" from there, and what libvirt lets into its networks. If everything is to be forwarded, write {name} = 1 in"
        f" /etc/sysctl.d and ip_forward = false under [daemon] in {main}, {RELOAD}, and then"
        f" {command('sysctl --system')}."
    )


def switch_on(device: str) -> str:
    """Say how to switch a device on."""
    return f"Switch it on: {command(f'ip link set {device} up')}."


def drop_route(route: RouteAnswer) -> str:
    """Say how to take a route away that leads astray, or nowhere."""
    via = f" via {route.gateway}" if route.gateway is not None else ""
    out = f" dev {route.device}" if route.device is not None else ""
    there = "" if route.table == MAIN_TABLE else f" table {route.table}"
    kind = f"{route.kind} " if route.kind else ""
    if route.subnet is None or (route.device is not None and not is_interface_name(route.device)):
        return "Take away the route or rule that keeps it from being reached."
    return f"Take that route away: {command(f'{_ip(route.subnet)} route del {kind}{route.subnet}{via}{out}{there}')}."


def route_address(address: Address, bridge: str, origin: Origin) -> str:
    """Say how to have a guest's address believed on a bridge whose own subnet is a single address."""
    wrong = f"write the guest's own address in {origin}"
    if not is_interface_name(bridge):
        return f"Route {address} to the guest's bridge, and {RELOAD}; or {wrong}."
    route = command(f"{_ip(ip_network(address))} route add {ip_network(address)} dev {bridge}")
    return f"Route the address to the guest's bridge, {route}, and {RELOAD}; or {wrong}, if that is another."


def add_route(subnet: Subnet, bridge: str | None) -> str:
    """Say how to add the route that a guest network lost."""
    if bridge is None or not is_interface_name(bridge):
        return f"Add a route to {subnet} through the interface that leads to the guest."
    return f"Add the network's own route again: {command(f'{_ip(subnet)} route add {subnet} dev {bridge}')}."


def mend_reverse_path(arrival: Arrival, back: str, gateway: Address | None) -> str:
    """Say how to have strict rp_filter let a client in, and its answer out where it came in."""
    if gateway is not None and is_interface_name(arrival.came_in):
        return f"Send what goes to that client back by {arrival.came_in}: {_route_by(arrival, gateway)}."
    name = of_interface(Family.IPV4, arrival.came_in, "rp_filter")
    return (
        f"{set_sysctl(name, 2)[:-1]}; answers then leave by {shown(back)}, where the network must take"
        f" {arrival.address} as their source."
    )


def answer_elsewhere(arrival: Arrival, out: str, gateway: Address | None) -> str:
    """Tell, in half a sentence, what becomes of an answer that leaves by another interface."""
    doubt = (
        f"the answer leaves by {shown(out)}, where the network may refuse {arrival.address} as its source, unless a"
        " rule of policy routing for marks sends it elsewhere"
    )
    if gateway is None or not is_interface_name(arrival.came_in):
        return doubt
    return f"{doubt}; {_route_by(arrival, gateway)} sends it back by {arrival.came_in}"


def _route_by(arrival: Arrival, gateway: Address) -> str:
    client = ip_network(arrival.stand_in)
    return command(f"{_ip(client)} route add {client} via {gateway} dev {arrival.came_in}")


def set_hairpin(device: str) -> str:
    """Say how to put a bridge port into hairpin mode."""
    if not is_interface_name(device):
        return f"Put bridge port {shown(device)} into hairpin mode."
    return f"Put its bridge port into hairpin mode: {command(f'bridge link set dev {device} hairpin on')}."


def _ip(subnet: Subnet) -> str:
    return "ip" if Family.of(subnet) is Family.IPV4 else "ip -6"


# --- rules of others -------------------------------------------------------------------------------------------------


def open_gate(chain: BaseChain, gates: Sequence[Gate], main: str) -> str:
    """Say how to have a foreign forward chain let our connections through."""
    written = ", ".join(f'"{gate}"' for gate in [*gates, Gate(chain.family, chain.table, chain.name)])
    return f"Write gates = [{written}] under [daemon] in {main}, and {RELOAD}."


def keep_guests_online(main: str) -> str:
    """Say how to have guests pass a chain that Docker made refuse everything but its own."""
    return (
        "Docker refuses all that is not for its containers, guests of libvirt's networks included: write"
        f" keep_guests_online = true under [daemon] in {main}, and {RELOAD}."
    )


def name_uplinks(uplinks: Iterable[str], more: Iterable[str], main: str) -> str | None:
    """Say how to have more uplinks; nothing where one of them cannot be named. The key replaces those that are found.

    It is half a sentence without an end, and does not say to load it.
    """
    names = [*sorted(uplinks), *sorted(more)]
    if not all(map(_PLAIN.fullmatch, names)):
        return None
    written = ", ".join(f'"{name}"' for name in names)
    return f"write uplinks = [{written}] under [daemon] in {main}"


def share_table(chain: BaseChain, gates: Sequence[Gate], main: str) -> str:
    """Say how to have a chain let our connections through whose table takes rules of its owner only."""
    gate = Gate(chain.family, chain.table, chain.name)
    if chain.table != "firewalld":
        return f"Have the program that owns table {shown(chain.table)} let our connections through, or share the table."
    written = ", ".join(f'"{item}"' for item in [*gates, gate])
    gated = "" if gate in gates else f"Write gates = [{written}] under [daemon] in {main}. "
    # An older file has no such line, and of two the first one counts.
    lines = shlex.join(["sed", "-i", "-e", "1iNftablesTableOwner=no", "-e", "/^[[:blank:]]*NftablesTableOwner *=/d"])
    edit = command(f"{lines} {_FIREWALLD}")
    restart = command("systemctl restart firewalld")
    return f"{gated}Have firewalld share its table: {edit}, {restart}; and {RELOAD}."


def can_have_gate(chain: BaseChain) -> bool:
    """Whether the configuration can name a chain as a gate."""
    plain = all(_PLAIN.fullmatch(name) for name in (chain.table, chain.name))
    return chain.system is System.NFTABLES and chain.hook == "forward" and chain.family != "bridge" and plain


@dataclass(frozen=True, slots=True)
class End:
    """The address and port that packets go to at some place; with `back`, those that the answer comes from."""

    address: Address
    port: int
    back: bool = False


def on_purpose(what: str, chain: str, client: str) -> str:
    """Say that a client is refused on purpose, and by what: what was closed so is not to be opened."""
    return f"This is on purpose: {what} {client} in {chain}."


def by_mark(does: str, where: str, marked: str | None) -> str:
    """Say that connections are refused by a mark or label, which may stand for clients that were picked out before."""
    by = f"by the mark that {marked} gives" if marked else "by what marks they have"
    return f"This may be on purpose: {where} {does} connections {by}. Ask its author before you change it."


def kept_away(client: Address, route: RouteAnswer) -> str:
    """Say that a client is kept away on purpose, by a route."""
    return f"This is on purpose: the route {route.kind} {route.subnet} of this host lets nothing go to {client}."


def ruled_away(rule: str, source: Address, to: Address) -> str:
    """Say that nothing goes from one address to another on purpose, by a rule of policy routing."""
    return f"This is on purpose: the rule of policy routing {rule} lets nothing go from {source} to {to}."


def except_from(chain: BaseChain, end: End, protocol: Protocol) -> str:
    """Say how to have a chain leave a connection alone, by a rule at its head."""
    return _exception(chain, end, protocol, _AT_HEAD)


def except_at_end(chain: BaseChain, end: End, protocol: Protocol) -> str:
    """Say how to do so at the end of a chain whose policy refuses, so that its rules about clients still apply."""
    return _exception(chain, end, protocol, _AT_END)


def except_within(chain: BaseChain, end: End, protocol: Protocol) -> str:
    """Say how to do so where only the owner of the chain knows which rules have to come first."""
    accepting = _accepting(chain, end, protocol)
    return f"{accepting}, behind its rules that refuse clients."


def _accepting(chain: BaseChain, end: End, protocol: Protocol) -> str:
    which = "from" if end.back else "to"
    return f"Have chain {shown(str(chain))} accept {protocol} {which} {end.address} port {end.port}"


def _exception(chain: BaseChain, end: End, protocol: Protocol, verb: Mapping[bool, str]) -> str:
    if not all(_PLAIN.fullmatch(name) for name in (chain.table, chain.name)):
        return f"{_accepting(chain, end, protocol)}."
    exception = _native_exception if chain.system is System.NFTABLES else _iptables_exception
    words = exception(chain, end, protocol, verb[chain.system is System.NFTABLES])
    return f"Have it make an exception: {command(words)}."


def _native_exception(chain: BaseChain, end: End, protocol: Protocol, verb: str) -> str:
    ip = Family.of(end.address).word
    address, port = ("saddr", "sport") if end.back else ("daddr", "dport")
    return f"nft {verb} rule {chain} {ip} {address} {end.address} {protocol} {port} {end.port} accept"


def _iptables_exception(chain: BaseChain, end: End, protocol: Protocol, verb: str) -> str:
    address, port = ("-s", "--sport") if end.back else ("-d", "--dport")
    match = f"{address} {end.address} -p {protocol} {port} {end.port}"
    return f"{iptables_program(chain.policy)} -w -t {chain.table} {verb} {chain.name} {match} -j ACCEPT"


def iptables_program(location: RuleLocation) -> str:
    """Name the program that writes to a chain of iptables."""
    kind = "nft" if location.system is System.IPTABLES_NFT else "legacy"
    return f"{location.family}tables-{kind}"


def denied(refusal: Refusal, where: str, found: SourceSet | None, client: Address, world: World) -> tuple[str, str]:
    """Say that the configuration refuses a client, and by what; that is not to be opened, so it is no remedy."""
    if not refusal.denied:
        return f"{where} is for others only", f"This is on purpose: {client} is not among those who may connect."
    if found is None:
        return f"{where} denies {refusal.network}", f"This is on purpose: {where} denies {client}."
    network = found.network_of(client)
    if network is None:
        kept = "which other programs fill"
    else:
        kept = f"{network} at {place_of(network, found, world.text_of(found.file) if found.file else b'')}"
    what = f"set {found.name} ({kept})"
    return f"{where} denies who is in {what}", f"This is on purpose: {client} is in {what}, written at {found.origin}."


def clients(sources: Iterable[Subnet], admission: Admission | None) -> str:
    """Say who may connect without any other condition."""
    asked = admission or Admission()
    return ", ".join([*map(str, (*sources, *asked.sources)), *(f"set {name}" for name in asked.sets)]) or "anywhere"


def limits(admission: Admission | None) -> str:
    """Say how often one client may connect; empty where that is not limited."""
    if admission is None:
        return ""
    rate = f"{admission.rate.number} new connections a {admission.rate.unit}" if admission.rate else ""
    most = f"{admission.max_open} open ones" if admission.max_open else ""
    found = " and ".join(filter(None, (rate, most)))
    return f"; one address may have {found}, and what goes beyond is dropped" if found else ""
