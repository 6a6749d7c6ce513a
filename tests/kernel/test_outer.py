"""Which interfaces lead away from the host, as the real kernel shows them."""

import sys

import pytest

from tests.lab.command import run

_ASK = "from fwdaemon.outer import outer_interfaces; print(*sorted(outer_interfaces()))"
# /sys shows the links of whoever mounted it.
_THERE = 'mount -t sysfs none /sys && ip -batch - && exec "$0" -c "$1"'


@pytest.mark.usefixtures("lab")
def test_interfaces_that_lead_to_guests_are_not_outer() -> None:
    links = [
        "link add eth0 type veth peer name away0",
        "link add eth1 type veth peer name away1",
        "link add mac1 link eth1 type macvlan",
        "link add br0 type bridge",
        "link set mac1 master br0",
        "link add mac0 link away0 type macvlan",
        "tuntap add tun0 mode tun",
        "tuntap add tap0 mode tap",
        "tuntap add vnet0 mode tap",
        "link add virbr0 type bridge",
        "link set vnet0 master virbr0",
        "link add container type veth peer name inside",
        "link set inside address 02:00:00:00:00:01",
        "link add docker0 type bridge",
        "link set container master docker0",
        "link add empty type bridge",
        "link add onbridge link virbr0 type macvlan",
    ]
    argv = ["unshare", "--net", "--mount", "--", "sh", "-c", _THERE, sys.executable, _ASK]
    outer = run(argv, stdin="\n".join(links)).stdout.split()
    assert outer == ["away0", "away1", "br0", "eth0", "eth1", "inside", "mac0", "tun0"]
