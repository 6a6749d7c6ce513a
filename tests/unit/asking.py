"""Domains that ask for forwards, a policy that allows some, and who gets what."""

from ipaddress import ip_address, ip_network
from pathlib import Path
from uuid import UUID

from fwdaemon import config as configuration
from fwdaemon.audit.causes import why
from fwdaemon.config.model import Config
from fwdaemon.core.inventory import (
    AddressSource,
    Domain,
    Element,
    GuestInterface,
    HostAddress,
    Inventory,
    LearnedAddress,
    Metadata,
    Network,
)
from fwdaemon.core.state import Desired
from fwdaemon.resolve.placement import desired_state

NETWORKS = tuple(
    Network(name, active=True, bridge=f"virbr{n}", subnets=(ip_network(f"192.168.{122 + n}.0/24"),))
    for n, name in enumerate(("default", "inner"))
)
HOST = (
    HostAddress(ip_address("198.51.100.1"), ip_network("198.51.100.0/24"), "eth0"),
    HostAddress(ip_address("198.51.100.7"), ip_network("198.51.100.7/32"), "eth0"),
)
ALLOW = """
[[allow]]
domains = ["ci-*", "00000000-0000-0000-0000-000000000009"]
networks = ["default"]
ports = ["8000-8099", "53"]
max = 4
"""
# The same, and addresses of their own.
PUBLIC = f'{ALLOW}public = ["192.0.2.64/27"]\nassign = "eth0"\n'


def element(name: str = "forward", **attributes: str) -> Element:
    return Element(name, tuple(attributes.items()))


def forward(ports: str, **attributes: str) -> Element:
    return element(ports=ports, **attributes)


def domain(name: str, number: int, *elements: Element, network: str = "default", running: bool = True) -> Domain:
    """The domain that was started as number so many."""
    bridge = {"default": "virbr0", "inner": "virbr1"}[network]
    address = LearnedAddress(ip_address(f"192.168.{122 + int(bridge[-1])}.{number}"), AddressSource.LEASE)
    interfaces = (GuestInterface(f"52:54:00:00:00:{number:02x}", network, bridge, f"vnet{number}", (address,)),)
    uuid = UUID(int=number)
    return Domain(name, uuid, running, interfaces if running else (), metadata=Metadata(elements), instance=number)


def config(text: str = ALLOW) -> Config:
    return configuration.parse({Path("/portfwd.toml"): text})


def placed(*domains: Domain, text: str = ALLOW) -> Desired:
    return desired_state(config(text), Inventory(domains, NETWORKS, HOST))


def live(desired: Desired) -> set[str]:
    return {f"{exposure.owner.name} {exposure.listens_at()}" for exposure in desired.exposures}


def refused(desired: Desired) -> dict[str, str]:
    return {f"{item.owner.name} {item.claim}": why(item.reason) for item in desired.waiting if item.refused}
