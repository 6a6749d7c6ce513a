"""What libvirt's XML says, as this program understands it."""

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwdaemon.core.inventory import AddressSource, Attachment, GuestInterface, LearnedAddress, MacClaim
from fwdaemon.hypervisor.xml import guest_address, normal_mac, parse_domain, parse_network

MAC = "52:54:00:00:00:01"


def domain(devices: str) -> str:
    return f"<domain type='qemu' id='3'><name>web1</name><devices>{devices}</devices></domain>"


@pytest.mark.parametrize(
    ("interface", "expected"),
    [
        pytest.param(
            "<interface type='network'><mac address='52:54:00:00:00:01'/>"
            "<source network='default' portid='x' bridge='virbr0'/><target dev='vnet0'/></interface>",
            GuestInterface(MAC, "default", "virbr0", "vnet0"),
            id="network",
        ),
        pytest.param(
            "<interface type='bridge'><mac address='52:54:00:00:00:01'/>"
            "<source network='lan' portid='x' bridge='br0'/><target dev='vnet1'/></interface>",
            GuestInterface(MAC, "lan", "br0", "vnet1"),
            id="network that only names a bridge",
        ),
        pytest.param(
            "<interface type='bridge'><mac address='52:54:00:00:00:01'/><source bridge='br0'/></interface>",
            GuestInterface(MAC, None, "br0", None),
            id="bridge",
        ),
        pytest.param(
            "<interface type='direct'><mac address='52:54:00:00:00:01'/><source dev='eth0' mode='bridge'/>"
            "<target dev='macvtap0'/></interface>",
            GuestInterface(MAC, None, None, "macvtap0", (), Attachment.MACVTAP, "eth0"),
            id="direct",
        ),
        pytest.param(
            "<interface type='direct'><mac address='52:54:00:00:00:01'/>"
            "<source network='lan' portid='x' dev='eth0' mode='bridge'/><target dev='macvtap0'/></interface>",
            GuestInterface(MAC, "lan", None, "macvtap0", (), Attachment.MACVTAP, "eth0"),
            id="network that hands out macvtap",
        ),
        pytest.param(
            "<interface type='ethernet'><mac address='52:54:00:00:00:01'/><target dev='tap7'/></interface>",
            GuestInterface(MAC, None, None, "tap7"),
            id="ethernet",
        ),
        pytest.param(
            "<interface type='user'><mac address='52:54:00:00:00:0A'/></interface>",
            GuestInterface("52:54:00:00:00:0a", None, None, None, (), Attachment.USER_MODE),
            id="user, MAC in capitals",
        ),
        pytest.param(
            "<interface type='vhostuser'><mac address='52:54:00:00:00:01'/><source type='unix' path='/x'/>"
            "<backend type='passt'/></interface>",
            GuestInterface(MAC, None, None, None, (), Attachment.USER_MODE),
            id="passt by vhost-user",
        ),
    ],
)
def test_interface(interface: str, expected: GuestInterface) -> None:
    assert parse_domain(domain(interface)).interfaces == (expected,)


def test_interface_without_a_mac_is_none() -> None:
    assert parse_domain(domain("<interface type='user'/>")).interfaces == ()


def test_domain_without_devices() -> None:
    assert parse_domain("<domain/>").interfaces == ()


@pytest.mark.parametrize(
    ("target", "connected"),
    [
        ("<target type='virtio' name='org.qemu.guest_agent.0' state='connected'/>", True),
        ("<target type='virtio' name='org.qemu.guest_agent.0' state='disconnected'/>", False),
        ("<target type='virtio' name='org.qemu.guest_agent.0'/>", False),
        ("<target type='virtio' name='com.redhat.spice.0' state='connected'/>", False),
    ],
)
def test_agent_channel(target: str, *, connected: bool) -> None:
    assert parse_domain(domain(f"<channel type='unix'>{target}</channel>")).agent_connected is connected


NETWORK = """
<network>
  <name>default</name>
  <forward mode='nat'/>
  <bridge name='virbr0' stp='on'/>
  <ip address='192.168.122.1' netmask='255.255.255.0'>
    <dhcp>
      <range start='192.168.122.2' end='192.168.122.254'/>
      <host mac='52:54:00:00:00:01' name='web1' ip='192.168.122.50'/>
      <host mac='52:54:00:00:00:02' name='nothing said of its address'/>
      <host name='client-id only' ip='192.168.122.51'/>
    </dhcp>
  </ip>
  <ip family='ipv6' address='2001:db8:122::1' prefix='64'>
    <dhcp><host id='00:01:02' name='web1' ip='2001:db8:122::50'/></dhcp>
  </ip>
  <route address='10.9.0.0' prefix='16' gateway='192.168.122.9'/>
</network>
"""


def test_network() -> None:
    definition = parse_network(NETWORK, active=True)
    network = definition.network
    assert (network.name, network.active, network.bridge) == ("default", True, "virbr0")
    assert network.subnets == (ip_network("192.168.122.0/24"), ip_network("2001:db8:122::/64"))
    assert network.gateways == (ip_address("192.168.122.1"), ip_address("2001:db8:122::1"))
    reserved = LearnedAddress(IPv4Address("192.168.122.50"), AddressSource.RESERVATION)
    assert definition.reservations == (MacClaim(MAC, reserved),)


def test_network_of_a_bridge_has_no_subnet() -> None:
    xml = "<network><name>lan</name><forward mode='bridge'/><bridge name='br0'/></network>"
    network = parse_network(xml, active=False).network
    assert (network.bridge, network.subnets, network.active) == ("br0", (), False)


@pytest.mark.parametrize(
    ("forward", "expected"),
    [
        ("", {4, 6}),
        ("<forward/>", {4}),
        ("<forward mode='nat'><nat/></forward>", {4}),
        ("<forward mode='nat'><nat ipv6='yes'/></forward>", {4, 6}),
        ("<forward mode='route'/>", set()),
        ("<forward mode='open'/>", set()),
        ("<forward mode='bridge'/>", set()),
    ],
)
def test_in_which_families_libvirt_lets_nobody_in(forward: str, expected: set[int]) -> None:
    xml = f"<network><name>lan</name>{forward}<bridge name='virbr0'/></network>"
    assert parse_network(xml, active=True).network.closed == expected


@pytest.mark.parametrize(
    ("forward", "expected"),
    [
        ("", (False, False)),
        ("<forward/>", (True, False)),
        ("<forward mode='nat'/>", (True, False)),
        ("<forward mode='route'/>", (True, False)),
        ("<forward mode='open'/>", (True, True)),
        ("<forward mode='bridge'/>", (False, True)),
    ],
)
def test_what_libvirt_forwards_for_a_network_and_whether_it_refuses_any_of_it(
    forward: str, expected: tuple[bool, bool]
) -> None:
    xml = f"<network><name>lan</name>{forward}<bridge name='virbr0'/></network>"
    network = parse_network(xml, active=True).network
    assert (network.forwards, network.unfiltered) == expected


@pytest.mark.parametrize(
    ("address", "subnet"),
    [
        ("10.1.2.1", "10.0.0.0/8"),
        ("172.16.3.1", "172.16.0.0/16"),
        ("192.168.5.1", "192.168.5.0/24"),
        ("2001:db8::1", "2001:db8::/64"),
    ],
)
def test_prefix_left_out(address: str, subnet: str) -> None:
    network = parse_network(f"<network><name>n</name><ip address='{address}'/></network>", active=True).network
    assert network.subnets == (ip_network(subnet),)


@pytest.mark.parametrize("text", ["", None, "192.168.122.300", "fe80::1%eth0", "2001:db8::1%1", "web1", "10.0.0.0/8"])
def test_what_is_no_address(text: str | None) -> None:
    assert guest_address(text) is None


@given(st.ip_addresses())
def test_every_address_is_one(address: IPv4Address | IPv6Address) -> None:
    assert guest_address(str(address)) == address


@given(st.text())
def test_only_a_mac_is_a_mac(text: str) -> None:
    mac = normal_mac(text)
    assert mac is None or (len(mac) == 17 and mac == text.lower())


@given(st.binary(min_size=6, max_size=6))
def test_every_mac_is_one(octets: bytes) -> None:
    assert normal_mac(octets.hex(":").upper()) == octets.hex(":")
