"""Keeps the kernel's routes to libvirt networks.

A route of ours is known by its protocol number, so that nothing needs to be remembered. Somebody else's route for the
same addresses is never replaced: where it leads to the same bridge it does as well as ours.
"""

import errno
from collections.abc import Collection, Iterable
from typing import Final

from fwdaemon.core.exposures import Route
from fwdaemon.core.report import ApplyResult, Fault, FaultKind
from fwdaemon.core.text import shown
from fwdaemon.core.types import Family, Subnet
from fwdaemon.errors import KernelError
from fwdaemon.hostnet.owned_state import Ipv6Bridges
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
    42: "babel",
    186: "bgp",
    187: "isis",
    188: "ospf",
    189: "rip",
}


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
        """Tell what `apply` would find and do now, touching nothing.

        Raises:
            KernelError: the kernel does not list its routes.

        """
        with Rtnetlink() as kernel:
            present, superfluous = _sorted_out(kernel, routes)
            missing = frozenset(route for route in routes - present if not _is_as_good(kernel, route))
        stale = _unwanted(superfluous, routes)
        return ApplyResult(mended=missing, stale=stale, changed=bool(missing or superfluous))


def _unwanted(superfluous: Iterable[KernelRoute], routes: Iterable[Route]) -> frozenset[str]:
    """Name routes of ours for which nobody asks; those that were only changed are not among them."""
    wanted = {route.subnet for route in routes}
    return frozenset(f"route {entry.subnet}" for entry in superfluous if entry.subnet not in wanted)


def _is_as_good(kernel: Rtnetlink, route: Route) -> bool:
    """Whether somebody else's route leads to the same bridge."""
    other = route_of(kernel, route.subnet)
    return other is not None and other.index == interface_index(route.bridge) and not other.is_local


def _bridges(routes: Iterable[Route], family: Family) -> set[str]:
    """Give the bridges that routes of a family need, as far as they are there."""
    bridges = {route.bridge for route in routes if route.family is family}
    return {bridge for bridge in bridges if interface_index(bridge) is not None}


def _sorted_out(kernel: Rtnetlink, routes: Iterable[Route]) -> tuple[frozenset[Route], list[KernelRoute]]:
    """Tell which routes the kernel has from us, and which it has that are not among them, or were changed."""
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
    """Whether there is a route to this interface for exactly this subnet, be it ours or somebody else's.

    Raises:
        KernelError: there is one that leads elsewhere.

    """
    found = route_of(kernel, subnet)
    if found is not None and not found.leads_to(index):
        raise KernelError(_format_route(found))
    return found is not None


def _add(kernel: Rtnetlink, subnet: Subnet, index: int) -> None:
    try:
        add_route(kernel, subnet, index)
    except RefusedError as error:
        if error.number == errno.EEXIST:
            raise KernelError("another route for it exists: remove that one") from error
        raise


def _format_route(other: KernelRoute) -> str:
    if other.is_local:
        return "it is an address of this host"
    where = "elsewhere" if other.index is None else f"to {shown(interface_name(other.index))}"
    protocol = _PROTOCOLS.get(other.protocol, str(other.protocol))
    return f"it is already routed {where} by another program (protocol {protocol}): remove that route"
