"""Has the kernel route packets for exposures: its routes to libvirt networks, and that it forwards at all.

A route of ours is known by its protocol number, so that nothing needs to be remembered. Another program's route for the
same addresses is never replaced: where it leads to the same bridge it does as well as ours.

The host's switch of forwarding makes a router of it, for everything. Where it was off before us that is recorded, and
what was not forwarded before stays so: `Forwarding.confined` says in which families the rules are to refuse it. It is
turned off again when everything is taken away, unless a network of libvirt's needs it. Those of interfaces are put
back, too. IPv4 looks at the interface by which a packet comes in: `Forwarding.switched` says by which ones the rules
are to refuse what was not forwarded before. IPv6 looks at the host's switch; that of an interface makes it say that it
is a router, and answer neighbours on behalf of guests (net/ipv6/ndisc.c).
"""

import errno
import os
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Final

from fwdaemon.core.exposures import Route
from fwdaemon.core.report import ApplyResult, Fault, FaultKind, Note, NoteKind, Setting, fault_of, joined
from fwdaemon.core.state import Desired
from fwdaemon.core.text import is_interface_name, shown
from fwdaemon.core.types import Family, Subnet
from fwdaemon.errors import KernelError
from fwdaemon.hostnet.owned_state import Ipv6Bridges, OwnedStateFile, SysctlOverrides
from fwdaemon.kernel import sysctl
from fwdaemon.kernel.rtnetlink import RefusedError, Rtnetlink, interface_index, interface_name
from fwdaemon.kernel.rtnl_links import KernelRoute, add_route, delete_route, our_routes, route_of

# linux/rtnetlink.h, RTPROT_*: those that one meets.
_PROTOCOLS: Final = {
    2: "kernel",
    3: "boot",
    4: "static",
    9: "ra",
    11: "zebra",
    12: "bird",
    16: "dhcp",
    18: "keepalived",
} | {42: "babel", 186: "bgp", 187: "isis", 188: "ospf", 189: "rip"}


class RouteKeeper:
    """Makes the kernel hold the routes that are wanted, and no others of our protocol number."""

    def __init__(self, ipv6: Ipv6Bridges | None = None) -> None:
        self._ipv6 = ipv6 or Ipv6Bridges()
        self._held: frozenset[Route] = frozenset()
        self._asked: frozenset[Route] | None = None

    def apply(self, routes: frozenset[Route], *, full: bool = False) -> ApplyResult:
        """Make the kernel hold exactly these; `mended` are those that were missing, or not as we make them. Blocks.

        Where none are wanted, and none were, the kernel's are listed only if this is to be `full`.

        Raises:
            KernelError: the kernel does not list its routes.

        """
        if not routes and self._asked == routes and not full:
            return ApplyResult()
        with Rtnetlink() as kernel:
            present, superfluous = _sorted_out(kernel, routes)
            for entry in superfluous:
                delete_route(kernel, entry)
            opened = self._ipv6.apply(_bridges(routes, Family.IPV6))
            added, refused = _added(kernel, routes, present)
        damaged, self._held = added & self._held, added | present
        first, self._asked = self._asked is None, routes
        return ApplyResult(
            mended=added,
            damaged=damaged,
            stale=_unwanted(superfluous, routes) if first else frozenset(),
            faults=(*opened.faults, *refused.values()),
            changed=bool(added or superfluous or opened.changed),
            refused=tuple(refused.items()),
            settings=opened.settings,
        )

    def preview(self, routes: frozenset[Route]) -> ApplyResult:
        """Say what `apply` would find and do now, touching nothing.

        Raises:
            KernelError: the kernel does not list its routes.

        """
        with Rtnetlink() as kernel:
            present, superfluous = _sorted_out(kernel, routes)
            missing = frozenset(route for route in routes - present if not _is_as_good(kernel, route))
        stale = _unwanted(superfluous, routes)
        return ApplyResult(mended=missing, stale=stale, changed=bool(missing or superfluous))


def _unwanted(superfluous: Iterable[KernelRoute], routes: Iterable[Route]) -> frozenset[str]:
    """Name routes of ours that are not wanted; those that were only changed are not among them."""
    wanted = {route.subnet for route in routes}
    return frozenset(f"route {entry.subnet}" for entry in superfluous if entry.subnet not in wanted)


def _is_as_good(kernel: Rtnetlink, route: Route) -> bool:
    """Whether a route of others leads to the same bridge."""
    other = route_of(kernel, route.subnet)
    return other is not None and other.index == interface_index(route.bridge) and not other.is_local


def _bridges(routes: Iterable[Route], family: Family) -> set[str]:
    """Give the bridges that routes of a family need, as far as they are there."""
    bridges = {route.bridge for route in routes if route.family is family}
    return {bridge for bridge in bridges if interface_index(bridge) is not None}


def _sorted_out(kernel: Rtnetlink, routes: Iterable[Route]) -> tuple[frozenset[Route], list[KernelRoute]]:
    """Say which routes the kernel has from us, and which it has that are not among them, or were changed."""
    indices = ((route, interface_index(route.bridge)) for route in routes)
    wanted = {(route.subnet, index): route for route, index in indices if index is not None}
    present, superfluous = set(), []
    for entry in (entry for family in Family for entry in our_routes(kernel, family)):
        route = None
        if entry.index is not None and entry.is_plain:
            route = wanted.get((entry.subnet, entry.index))
        if route is None:
            superfluous.append(entry)
        else:
            present.add(route)
    return frozenset(present), superfluous


def _added(
    kernel: Rtnetlink, routes: Iterable[Route], present: Collection[Route]
) -> tuple[frozenset[Route], dict[Route, Fault]]:
    """Add routes that are not present, and return which were added, and what is wrong with others."""
    added, refused = set(), {}
    for route in sorted(routes, key=Route.listens_at):
        try:
            index = _bridge_index(route)
            if not _leads_to(kernel, route.subnet, index) and route not in present:
                _add(kernel, route.subnet, index)
                added.add(route)
        except KernelError as error:
            refused[route] = Fault(FaultKind.ROUTE, (str(route.subnet), route.network), str(error))
    return frozenset(added), refused


def _bridge_index(route: Route) -> int:
    index = interface_index(route.bridge)
    if index is None:
        raise KernelError(f"there is no bridge {shown(route.bridge)}")
    return index


def _leads_to(kernel: Rtnetlink, subnet: Subnet, index: int) -> bool:
    """Whether there is a route to this interface for exactly this subnet, be it ours or not.

    Raises:
        KernelError: there is one that leads elsewhere.

    """
    found = route_of(kernel, subnet)
    if found is not None and not found.leads_to(index):
        raise _in_the_way(found)
    return found is not None


def _add(kernel: Rtnetlink, subnet: Subnet, index: int) -> None:
    try:
        add_route(kernel, subnet, index)
    except RefusedError as error:
        if error.number == errno.EEXIST:
            raise KernelError("another route for it exists: remove that one") from error
        raise


def _in_the_way(other: KernelRoute) -> KernelError:
    if other.is_local:
        return KernelError("it is an address of this host")
    where = "elsewhere" if other.index is None else f"to {shown(interface_name(other.index))}"
    protocol = _PROTOCOLS.get(other.protocol, str(other.protocol))
    return KernelError(f"it is already routed {where} by another program (protocol {protocol}): remove that route")


# Forwarding: on the whole host, and on each interface that is crossed.

# For which families we turned the host's forwarding on: its value does not tell, as libvirt writes the same.


class TurnedOn:
    """A set of families, kept in /run for the next run and for `kvm-portfwd flush`."""

    def __init__(self, state_file: OwnedStateFile) -> None:
        self._state_file = state_file
        self._families = {
            family for family in Family for record in state_file.records if record.get("family") == family
        }

    def __contains__(self, family: Family) -> bool:
        """Whether it was off before us."""
        return family in self._families

    def add(self, family: Family) -> None:
        """Record a family, before it is turned on; a record that others deleted is written again."""
        self._families.add(family)
        self._write()

    def discard(self, family: Family) -> None:
        """Forget a family."""
        self._families.discard(family)
        self._write()

    def _write(self) -> None:
        self._state_file.write({"family": int(family)} for family in self._families)


_PROC: Final = Path("/proc")
_RTF_ADDRCONF = 0x00040000  # linux/ipv6_route.h: the route came with a router advertisement


class Forwarding:
    """Keeps forwarding on for each family that has exposures, where that is allowed.

    `refused` names the families in which the kernel holds rules that refuse what was not forwarded before.
    """

    def __init__(
        self, refused: Callable[[], Collection[Family]], state_file: Callable[[str], OwnedStateFile] = OwnedStateFile
    ) -> None:
        self._refused = refused
        self._overrides = {
            family: SysctlOverrides(state_file(f"forwarding-ipv{family}"), family, "forwarding", "1")
            for family in Family
        }
        self._turned_on = TurnedOn(state_file("forwarding"))
        self._seen: set[Family] = set()

    def adopt(self, families: Collection[Family], interfaces: Collection[tuple[Family, str]] = ()) -> None:
        """Record that we turned these on, as our own rules say where the record has gone."""
        for family in families:
            if is_on(family):
                self._turned_on.add(family)
        for family, interface in interfaces:
            self._overrides[family].adopt(interface, "0")

    def has_turned_on(self) -> bool:
        """Whether we turned any family on."""
        return any(family in self._turned_on for family in Family)

    def confined(self, desired: Desired, *, allowed: bool) -> frozenset[Family]:
        """Name the families in which nothing else may pass: those we turned on, and those we are about to."""
        return frozenset(
            family
            for family in Family
            if (family in self._turned_on if is_on(family) else allowed and family in desired.families)
        )

    def switched(self, desired: Desired, *, allowed: bool) -> frozenset[tuple[Family, str]]:
        """Name the interfaces of a forwarding host on which we turn it on, or did, but no bridge of libvirt's.

        IPv6 does not look at them.
        """
        family = Family.IPV4
        needed = _crossed(desired, family) if allowed and is_on(family) and family in desired.families else ()
        found = self._overrides[family].taken(needed) - desired.inside
        return frozenset((family, name) for name in found if is_interface_name(name))

    def apply(self, desired: Desired, *, allowed: bool) -> ApplyResult:
        """Turn on what is needed and off, and return what is not on though it is needed."""
        result = ApplyResult()
        for family in Family:
            needed = _crossed(desired, family) if family in desired.families else frozenset[str]()
            if not allowed and family in self._turned_on:
                needing = [network for of_family, network in desired.forwarded if of_family is family]
                result = joined(result, self._put_back(family, needing))
            if family in desired.families:
                result = joined(result, self._host(family, allowed=allowed))
            open_ways = self._open_ways(family, needed, desired) if allowed and is_on(family) else frozenset[str]()
            result = joined(result, ApplyResult(faults=tuple(map(_left_off, sorted(open_ways)))))
            result = joined(result, self._interfaces(family, needed - open_ways, allowed=allowed))
        return result

    def _open_ways(self, family: Family, needed: frozenset[str], desired: Desired) -> frozenset[str]:
        """Name the interfaces that would let in more than what exposures are for, were forwarding turned on there."""
        if family is not Family.IPV4 or family in desired.confined:
            return frozenset()
        guarded = desired.inside.union(name for of_family, name in desired.switched if of_family is family)
        return self._overrides[family].taken(needed).intersection(needed) - guarded

    def _host(self, family: Family, *, allowed: bool) -> ApplyResult:
        was_on = family in self._seen
        if is_on(family):
            self._seen.add(family)
            if family in self._turned_on:
                self._turned_on.add(family)
            return ApplyResult()
        if not allowed:
            return ApplyResult(faults=(Fault(FaultKind.FORWARDING_OFF, (str(family),)),))
        if family not in self._refused():
            return ApplyResult(faults=(Fault(FaultKind.FORWARDING_UNGUARDED, (str(family),)),))
        was_ours = family in self._turned_on
        self._turned_on.add(family)  # first, or it would not be known if we ended here
        try:
            name = turn_on(family)
        except KernelError as error:
            self._turned_on.discard(family)
            return ApplyResult(faults=(fault_of(error),))
        self._seen.add(family)
        notes = () if was_ours else (Note(NoteKind.CONFINING, (str(family), name)),)
        return ApplyResult(changed=True, settings=(Setting(f"{name} = 1", was_on),), notes=notes)

    def _put_back(self, family: Family, needing: Collection[str]) -> ApplyResult:
        """Turn off what was off before us; not what a network of libvirt's needs, which would have turned it on."""
        self._turned_on.discard(family)
        if not is_on(family):
            return ApplyResult()
        if needing:
            return ApplyResult(changed=True, notes=(Note(NoteKind.FORWARDING_NEEDED, (str(family), *sorted(needing))),))
        sysctl.write(sysctl.FORWARDING[family], "0")
        self._seen.discard(family)
        return ApplyResult(changed=True, notes=(Note(NoteKind.FORWARDING_PUT_BACK, (sysctl.FORWARDING[family],)),))

    def _interfaces(self, family: Family, needed: Collection[str], *, allowed: bool) -> ApplyResult:
        overrides = self._overrides[family]
        if not allowed or not is_on(family):
            off = overrides.lacking(needed) if is_on(family) else []
            released = overrides.release(())
            faults = tuple(Fault(FaultKind.INTERFACE_OFF, (str(family), interface)) for interface in off)
            return ApplyResult(faults=faults, changed=released.changed)
        done = overrides.apply(needed)
        faults = tuple(
            Fault(FaultKind.INTERFACE_NOT_FORWARDING, (str(family), name), why) for name, why in done.faults.items()
        )
        return ApplyResult(faults=faults, changed=done.changed, settings=tuple(done.settings))


def is_on(family: Family, proc: Path = _PROC) -> bool:
    """Whether the host forwards packets of a family."""
    return sysctl.read(sysctl.FORWARDING[family], proc / "sys") == "1"


def turn_on(family: Family, proc: Path = _PROC) -> str:
    """Make the host forward packets of a family, and give the name of the sysctl that was written.

    Raises:
        KernelError: it could not be written, or the host would lose its own default route: the kernel ignores router
            advertisements on a forwarding host unless accept_ra is 2 (Documentation/networking/ip-sysctl.rst).

    """
    if family is Family.IPV6 and (links := _links_that_would_lose_their_route(proc)):
        raise KernelError(
            "IPv6 forwarding stays off: it would take away the default route that"
            f" {', '.join(map(shown, links))} learned from a router; set {shown(_accept_ra(links[0]))} = 2 first"
        )
    sysctl.write(sysctl.FORWARDING[family], "1", proc / "sys")
    return sysctl.FORWARDING[family]


def _left_off(interface: str) -> Fault:
    return Fault(FaultKind.INTERFACE_UNGUARDED, (sysctl.of_interface(Family.IPV4, interface, "forwarding"),))


def _crossed(desired: Desired, family: Family) -> frozenset[str]:
    """Name the interfaces, as far as they are there, by which packets of exposures come in."""
    found = {bridge for of_family, bridge in desired.bridges if of_family is family}
    found |= {route.proxy for route in desired.routes if route.family is family and route.proxy is not None}
    if family is Family.IPV4:
        found |= desired.ways_in
    else:
        found -= set(_links_that_would_lose_their_route())
    return frozenset(name for name in found if interface_index(name) is not None)


def _links_that_would_lose_their_route(proc: Path = _PROC) -> list[str]:
    """Find links with a default route from a router advertisement, and accept_ra at 1."""
    try:
        # Bytes are parted at blanks of ASCII alone, and those no link can have in its name (dev_valid_name).
        routes = [line.split() for line in (proc / "net/ipv6_route").read_bytes().splitlines()]
    except OSError:
        return []
    # Destination, its prefix length, …, flags, device: all but the device in hexadecimal (net/ipv6/route.c).
    learned = {os.fsdecode(route[9]) for route in routes if route[1] == b"00" and int(route[8], 16) & _RTF_ADDRCONF}
    return sorted(link for link in learned if sysctl.read(_accept_ra(link), proc / "sys") == "1")


def _accept_ra(link: str) -> str:
    return sysctl.of_interface(Family.IPV6, link, "accept_ra")
