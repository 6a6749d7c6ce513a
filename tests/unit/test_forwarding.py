import os
from pathlib import Path

import pytest

from fwdaemon.core.types import Family
from fwdaemon.errors import KernelError
from fwdaemon.hostnet import routing

# /proc/net/ipv6_route: a default route by router advertisement on eth0, a static one on eth1, a local prefix.
ROUTES = """\
00000000000000000000000000000000 00 00000000000000000000000000000000 00 fe80000000000000000000000000fffe 00000400 00000001 00000000 00450003     eth0
00000000000000000000000000000000 00 00000000000000000000000000000000 00 20010db8000000000000000000000001 00000400 00000001 00000000 00000003     eth1
20010db8000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00040001     eth0
"""  # noqa: E501  the kernel's own lines


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A /proc of ours: a host with a route by router advertisement cannot be made without a router."""
    for name in ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding", "net/ipv6/conf/eth0/accept_ra"):
        (tmp_path / "sys" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "sys" / name).write_text("0\n")
    (tmp_path / "net").mkdir()
    (tmp_path / "net/ipv6_route").write_text(ROUTES)
    return tmp_path


def test_forwarding_is_turned_on(proc: Path) -> None:
    assert not routing.is_on(Family.IPV4, proc)
    assert routing.turn_on(Family.IPV4, proc) == "net.ipv4.ip_forward"
    assert routing.is_on(Family.IPV4, proc)
    assert (proc / "sys/net/ipv6/conf/all/forwarding").read_text() == "0\n"


@pytest.mark.parametrize(("accept_ra", "stays_off"), [("0", False), ("1", True), ("2", False)])
def test_a_default_route_by_router_advertisement_is_not_lost(proc: Path, accept_ra: str, *, stays_off: bool) -> None:
    (proc / "sys/net/ipv6/conf/eth0/accept_ra").write_text(accept_ra)
    if stays_off:
        with pytest.raises(KernelError, match=r"eth0 learned .* set net\.ipv6\.conf\.eth0\.accept_ra = 2 first"):
            routing.turn_on(Family.IPV6, proc)
    else:
        routing.turn_on(Family.IPV6, proc)
    assert routing.is_on(Family.IPV6, proc) is not stays_off


@pytest.mark.parametrize("name", [b"e\xff", b"e\x1c", "e\x85".encode()], ids=repr)
def test_a_link_may_have_any_name(proc: Path, name: bytes) -> None:
    (proc / "net/ipv6_route").write_bytes(ROUTES.encode().replace(b"eth0", name))
    (proc / "sys/net/ipv6/conf" / os.fsdecode(name)).mkdir()
    (proc / "sys/net/ipv6/conf" / os.fsdecode(name) / "accept_ra").write_text("1")
    with pytest.raises(KernelError, match=r"that e\\\w+ learned .* set net\.ipv6\.conf\.e\\\w+\.accept_ra = 2 first"):
        routing.turn_on(Family.IPV6, proc)


def test_a_sysctl_that_cannot_be_written_is_an_error(proc: Path) -> None:
    (proc / "sys/net/ipv4/ip_forward").unlink()
    (proc / "sys/net/ipv4/ip_forward").mkdir()
    with pytest.raises(KernelError, match=r"cannot set net\.ipv4\.ip_forward to 1"):
        routing.turn_on(Family.IPV4, proc)
