"""The host on which domains come and go: a network of the usual size with DHCP, one guest that stays, the daemon."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.lab.daemon import Daemon
from tests.lab.domain import Link
from tests.lab.host import Host
from tests.lab.lxc import LxcGuest
from tests.lab.release import Flavour

NETWORK, URI = "default", "lxc:///system"
# What the names of domains that come and go begin with.
PASSING = "ci-"
STAYING, STAYING_PORT = "staying", 8000
FIRST, LAST = 20000, 29999
# Shorter leases there are none; so addresses of domains that are gone are given to others soon.
_LEASE_MINUTES = 2
# The server would ping an address before it offers it, for three seconds, and serve no one else meanwhile.
_NETWORK = f"""
<network xmlns:dnsmasq="http://libvirt.org/schemas/network/dnsmasq/1.0">
  <name>{NETWORK}</name>
  <forward mode="nat"/>
  <bridge stp="off" delay="0"/>
  <ip address="192.168.122.1" prefix="24">
    <dhcp>
      <range start="192.168.122.20" end="192.168.122.254"><lease expiry="{_LEASE_MINUTES}" unit="minutes"/></range>
    </dhcp>
  </ip>
  <dnsmasq:options><dnsmasq:option value="no-ping"/></dnsmasq:options>
</network>
"""
_CONFIG = f"""
[daemon]
libvirt = ["{URI}"]
auto_ports = "{FIRST}-{LAST}"

[[forward]]
domain = "{STAYING}"
address = "192.168.122.10"
ports = ["{STAYING_PORT}:80"]

[[allow]]
domains = ["{PASSING}*"]
networks = ["{NETWORK}"]
ports = ["{FIRST}-{LAST}"]
max = 4
"""


@dataclass(frozen=True, slots=True)
class Scene:
    """The host and its daemon; `staying` has a forward of the file."""

    host: Host
    daemon: Daemon
    staying: LxcGuest


@contextmanager
def set_up(flavour: Flavour) -> Iterator[Scene]:
    """Boot a host and bring everything up; it is gone after the block."""
    with Host.boot(flavour) as host:
        host.libvirt.start()
        with host.libvirt.connection() as connection:
            connection.networkDefineXML(_NETWORK).create()
        staying = LxcGuest(host, STAYING, Link(NETWORK, ("192.168.122.10/24",))).start()
        yield Scene(host, host.daemon(_CONFIG), staying)
