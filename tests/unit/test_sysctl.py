"""Names of settings, and that no name leads out of where settings are."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwdaemon.core.types import Family
from fwdaemon.errors import KernelError
from fwdaemon.kernel import sysctl


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "sys"
    (root / "net/ipv4/conf/eth0.100").mkdir(parents=True)
    (root / "net/ipv4/conf/eth0.100/forwarding").write_text("0\n")
    return root


def test_a_dot_in_a_name_is_a_slash(root: Path) -> None:
    name = sysctl.of_interface(Family.IPV4, "eth0.100", "forwarding")
    assert name == "net.ipv4.conf.eth0/100.forwarding"
    assert sysctl.read(name, root) == "0"
    sysctl.write(name, "1", root)
    assert (root / "net/ipv4/conf/eth0.100/forwarding").read_text() == "1\n"


def test_a_setting_that_is_not_there(root: Path) -> None:
    assert sysctl.read("net.ipv4.ip_forward", root) == ""
    with pytest.raises(KernelError, match=r"cannot set net\.ipv4\.conf\.gone\.forwarding to 1: No such file"):
        sysctl.write("net.ipv4.conf.gone.forwarding", "1", root)


@pytest.mark.parametrize("name", ["", ".", "..", "all", "default", "a/b", "../../kernel", "/", "n\0", "../eth0"])
def test_what_is_no_interface_has_no_settings(name: str) -> None:
    with pytest.raises(KernelError, match="is no interface with settings of its own"):
        sysctl.of_interface(Family.IPV6, name, "disable_ipv6")


@given(st.text(max_size=20))
def test_no_interface_leads_elsewhere(name: str) -> None:
    try:
        called = sysctl.of_interface(Family.IPV6, name, "disable_ipv6")
    except KernelError:
        return
    path = Path("/proc/sys") / called.translate(str.maketrans("./", "/."))
    assert path.parts == ("/", "proc", "sys", "net", "ipv6", "conf", name, "disable_ipv6")
