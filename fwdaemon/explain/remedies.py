"""What to do about each cause, in one sentence that can be followed to the letter. Pure.

Commands are set off by `report.command`. A name from outside is in one only where it cannot be read as anything else.
"""

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final

from fwdaemon.config.model import ForwardEntry, Gate, NatEntry, Origin
from fwdaemon.config.text import quote
from fwdaemon.explain.arrival import Arrival
from fwdaemon.explain.claims import Claim
from fwdaemon.explain.facts import MAIN_TABLE, RouteAnswer
from fwdaemon.explain.packet import Place, System
from fwdaemon.explain.report import command
from fwdaemon.explain.rules import BaseChain
from fwdaemon.inventory import Domain
from fwdaemon.model import Address, Family, Protocol, Subnet
from fwdaemon.naming import is_interface_name, shown

_RELOAD_COMMAND: Final = command("kvm-portfwd reload")
RELOAD: Final = f"run {_RELOAD_COMMAND}"
START_COMMAND: Final = command("systemctl enable --now kvm-portfwd")
START_SERVICE: Final = f"Start the service: {START_COMMAND}."
START_LIBVIRT: Final = f"start libvirt, {command('systemctl start libvirtd')}"

_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def in_force(remedy: str, *, daemon_runs: bool) -> str:
    """Have a change of the configuration take effect: by a daemon that does not run, when it starts."""
    return remedy if daemon_runs else remedy.replace(_RELOAD_COMMAND, START_COMMAND)


# --- the configuration -----------------------------------------------------------------------------------------------


def write(what: str, origin: Origin) -> str:
    """Tell to write something at a place of the configuration, and to load it."""
    return f"Write {what} in {origin}, and {RELOAD}."


def claim_port(near: Claim | None, arrival: Arrival, file: str) -> str:
    """Tell how to have a port forwarded that nobody claims."""
    if near is None or near.mapping is None:
        return f"Write a [[forward]] with this port into {file}, and {RELOAD}."
    mapping = near.mapping
    if near.interface is not None and near.everywhere and arrival.from_host:
        return other_interface(near, arrival)
    if near.listen and mapping.protocol is arrival.protocol and arrival.port in mapping.host:
        where = " or ".join(str(address) for address in near.listen)
        return f"Connect to {where} instead, where {near.origin} {near}."
    port = mapping.guest.first + min(max(arrival.port, mapping.host.first), mapping.host.last) - mapping.host.first
    suffix = "" if arrival.protocol is Protocol.TCP else f"/{arrival.protocol}"
    return (
        f'Add "{arrival.port}:{port}{suffix}" to ports in {near.origin}, and {RELOAD};'
        f" the nearest that is forwarded is {near.listens_at()}."
    )


def admit(claim: Claim, source: Address) -> str:
    """Tell how to let a client connect."""
    return f'Add "{source}/{source.max_prefixlen}" to sources in {claim.entry.origin}, and {RELOAD}.'


def other_interface(claim: Claim, arrival: Arrival) -> str:
    """Tell how to have a forward take what comes in by another interface."""
    if arrival.from_host:
        return f"Connect from outside through {claim.interface}: no connection of the host itself comes in there."
    return (
        f'Connect through {claim.interface}, or write interface = "{shown(arrival.came_in)}" in {claim.entry.origin}'
        f" and {RELOAD}."
    )


def name_domain(entry: ForwardEntry | NatEntry, known: Iterable[str]) -> str:
    """Tell how to name a domain that exists."""
    names = sorted(known)
    close = get_close_matches(entry.domain, names, n=1)
    if close:
        return write(f"domain = {quote(close[0])}", entry.origin)
    return f"Define domain {quote(entry.domain)} in libvirt, or write another domain in {entry.origin} and {RELOAD}."


def choose_domain(entry: ForwardEntry | NatEntry, domain: Domain) -> str:
    """Tell how to name one of several domains with one name."""
    return write(f'domain = "{domain.uuid}"', entry.origin)


# --- libvirt, and how guests are plugged in --------------------------------------------------------------------------


def start_domain(domain: Domain, uri: str) -> str:
    """Tell how to start a domain."""
    name = domain.name if _PLAIN.fullmatch(domain.name) else str(domain.uuid)
    return f"Start the domain: {command(_virsh(uri, 'start', name))}."


def start_network(name: str, uri: str, plugs: Iterable[tuple[str, str]]) -> str:
    """Tell how to start a network; `plugs` are devices of guests and the bridges they were on before it stopped."""
    if not _PLAIN.fullmatch(name):
        return f"Start network {shown(name)}, then plug its guests in again."
    commands = [command(_virsh(uri, "net-start", name)), *(command(plug) for plug in map(_plug, plugs) if plug)]
    again = ", and plug the guest in again" if len(commands) > 1 else ""
    return f"Start the network{again}: {', '.join(commands)}."


def plug_in(device: str, bridge: str) -> str:
    """Tell how to put a guest's interface back into its bridge."""
    plug = _plug((device, bridge))
    return f"Plug the guest in again: {command(plug)}." if plug else f"Plug {shown(device)} into {shown(bridge)} again."


def _plug(plug: tuple[str, str]) -> str:
    device, bridge = plug
    plain = is_interface_name(device) and is_interface_name(bridge)
    return f"ip link set {device} master {bridge}" if plain else ""


def _virsh(uri: str, *words: str) -> str:
    return shlex.join(["virsh", "-c", uri, *words])


# --- the kernel ------------------------------------------------------------------------------------------------------


def hold_address(address: Address, subnet: Subnet | None, device: str, other: str) -> str:
    """Tell how to give the host an address; `other` is one that it has."""
    length = subnet.prefixlen if subnet is not None else address.max_prefixlen
    if not is_interface_name(device):
        return f"Give this host the address, or connect to one that it has, {other}."
    adding = command(f"ip address add {address}/{length} dev {device}")
    return f"Give this host the address, {adding}, or connect to one that it has, {other}."


def set_sysctl(name: str, value: int) -> str:
    """Tell how to change a setting, by sysctl(8)'s name."""
    return f"Change the setting: {command(shlex.join(['sysctl', '-w', f'{name}={value}']))}."


def switch_on(device: str) -> str:
    """Tell how to switch a device on."""
    return f"Switch it on: {command(f'ip link set {device} up')}."


def drop_route(route: RouteAnswer) -> str:
    """Tell how to take a route away that leads astray, or nowhere."""
    via = f" via {route.gateway}" if route.gateway is not None else ""
    out = f" dev {route.device}" if route.device is not None else ""
    there = "" if route.table == MAIN_TABLE else f" table {route.table}"
    kind = f"{route.kind} " if route.kind else ""
    if route.subnet is None or (route.device is not None and not is_interface_name(route.device)):
        return "Take away the route or rule that keeps it from being reached."
    return f"Take that route away: {command(f'{_ip(route.subnet)} route del {kind}{route.subnet}{via}{out}{there}')}."


def add_route(subnet: Subnet, bridge: str | None) -> str:
    """Tell how to add the route that a guest network lost."""
    if bridge is None or not is_interface_name(bridge):
        return f"Add a route to {subnet} through the interface that leads to the guest."
    return f"Add the network's own route again: {command(f'{_ip(subnet)} route add {subnet} dev {bridge}')}."


def set_hairpin(device: str) -> str:
    """Tell how to put a bridge port into hairpin mode."""
    if not is_interface_name(device):
        return f"Put bridge port {shown(device)} into hairpin mode."
    return f"Put its bridge port into hairpin mode: {command(f'bridge link set dev {device} hairpin on')}."


def _ip(subnet: Subnet) -> str:
    return "ip" if Family.of(subnet) is Family.IPV4 else "ip -6"


# --- rules of others -------------------------------------------------------------------------------------------------


def open_gate(chain: BaseChain, gates: Sequence[Gate], main: str) -> str:
    """Tell how to have a foreign forward chain let our connections through."""
    written = ", ".join(f'"{gate}"' for gate in [*gates, Gate(chain.family, chain.table, chain.name)])
    return f"Write gates = [{written}] under [daemon] in {main}, and {RELOAD}."


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


def except_from(chain: BaseChain, end: End, protocol: Protocol) -> str:
    """Tell how to have a chain leave a connection alone, by a rule at its head."""
    if not all(_PLAIN.fullmatch(name) for name in (chain.table, chain.name)):
        which = "from" if end.back else "to"
        return f"Have chain {shown(str(chain))} accept {protocol} {which} {end.address} port {end.port}."
    exception = _native_exception if chain.system is System.NFTABLES else _iptables_exception
    return f"Have it make an exception: {command(exception(chain, end, protocol))}."


def _native_exception(chain: BaseChain, end: End, protocol: Protocol) -> str:
    ip = "ip" if Family.of(end.address) is Family.IPV4 else "ip6"
    address, port = ("saddr", "sport") if end.back else ("daddr", "dport")
    return f"nft insert rule {chain} {ip} {address} {end.address} {protocol} {port} {end.port} accept"


def _iptables_exception(chain: BaseChain, end: End, protocol: Protocol) -> str:
    address, port = ("-s", "--sport") if end.back else ("-d", "--dport")
    match = f"{address} {end.address} -p {protocol} {port} {end.port}"
    return f"{iptables_program(chain.policy)} -w -t {chain.table} -I {chain.name} {match} -j ACCEPT"


def iptables_program(place: Place) -> str:
    """Name the program that writes to a chain of iptables."""
    kind = "nft" if place.system is System.IPTABLES_NFT else "legacy"
    return f"{'iptables' if place.family == 'ip' else 'ip6tables'}-{kind}"
