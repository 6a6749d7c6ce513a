"""A setting of interfaces that is switched while it is needed, on the real kernel."""

import json
from pathlib import Path

import pytest

from fwdaemon.core.report import Setting
from fwdaemon.core.types import Family
from fwdaemon.hostnet.owned_state import OwnedStateFile, SysctlOverrides
from fwdaemon.kernel import sysctl
from tests.kernel.links import Links


@pytest.fixture
def links(links: Links) -> Links:
    links.host.ip("link add virbr2 type bridge")
    return links


def overrides(directory: Path) -> SysctlOverrides:
    return SysctlOverrides(OwnedStateFile("proxy-ndp", directory), Family.IPV6, "proxy_ndp", "1")


def setting(interface: str, *, restored: bool = False) -> list[Setting]:
    return [Setting(f"net.ipv6.conf.{interface}.proxy_ndp = 1", restored)]


def on(links: Links) -> list[str]:
    """Where it is on."""
    lines = links.host.run("sysctl", "-a", "--pattern", r"\.proxy_ndp$").splitlines()
    return [line.split(".")[3] for line in lines if line.endswith("= 1")]


def test_it_is_on_where_it_is_needed_and_only_there(links: Links, tmp_path: Path) -> None:
    kept = overrides(tmp_path)
    assert kept.apply({"virbr1"}).settings == setting("virbr1")
    assert on(links) == ["virbr1"]
    kept.release({"virbr1", "virbr2"})
    assert on(links) == ["virbr1"]
    assert kept.apply({"virbr2"}).settings == setting("virbr2")
    assert on(links) == ["virbr2"]
    assert not kept.apply({"virbr2"}).changed
    assert kept.release(()).changed
    assert on(links) == []


def test_a_later_run_knows_whose_doing_it_was(links: Links, tmp_path: Path) -> None:
    links.host.sysctl("ipv6.conf.eth0.proxy_ndp=1")
    overrides(tmp_path).apply({"virbr1", "eth0"})
    assert on(links) == ["eth0", "virbr1"]
    overrides(tmp_path).release(())
    assert on(links) == ["eth0"]


def test_what_was_bent_while_nobody_looked_is_put_back(links: Links, tmp_path: Path) -> None:
    overrides(tmp_path).apply({"virbr1"})
    links.host.sysctl("ipv6.conf.virbr1.proxy_ndp=0")
    assert overrides(tmp_path).apply({"virbr1"}).settings == setting("virbr1", restored=True)
    assert on(links) == ["virbr1"]


def test_what_had_been_right_without_us_is_put_back_and_stays(links: Links, tmp_path: Path) -> None:
    links.host.sysctl("ipv6.conf.virbr1.proxy_ndp=1")
    kept = overrides(tmp_path)
    kept.apply({"virbr1"})
    links.host.sysctl("ipv6.conf.virbr1.proxy_ndp=0")
    assert kept.apply({"virbr1"}).settings == setting("virbr1", restored=True)
    kept.release(())
    assert on(links) == ["virbr1"]


def test_another_interface_of_the_same_name_is_another(links: Links, tmp_path: Path) -> None:
    kept = overrides(tmp_path)
    kept.apply({"virbr1"})
    links.host.ip("link del virbr1", "link add virbr1 type bridge")
    assert kept.apply({"virbr1"}).settings == setting("virbr1")
    links.host.ip("link del virbr1", "link add virbr1 type bridge")
    links.host.sysctl("ipv6.conf.virbr1.proxy_ndp=1")
    overrides(tmp_path).release(())
    assert on(links) == ["virbr1"]
    assert json.loads((tmp_path / "proxy-ndp.json").read_text()) == []


def test_a_name_with_dots_is_a_name(links: Links, tmp_path: Path) -> None:
    links.host.ip("link add br.100 type bridge")
    kept = overrides(tmp_path)
    assert kept.apply({"br.100"}).settings == setting("br/100")
    kept.release(())
    assert on(links) == []


@pytest.mark.parametrize("name", ["x\udc85wan0", "x\x85wan0", "x\x1cwan0"])
def test_a_name_that_other_programs_would_break_is_one_name(links: Links, tmp_path: Path, name: str) -> None:
    links.host.run("ip", "link", "add", name, "type", "bridge")
    links.host.ip("link add wan0 type bridge")
    ours, other = (sysctl.of_interface(Family.IPV6, one, "proxy_ndp") for one in (name, "wan0"))
    links.host.sysctl("ipv6.conf.wan0.proxy_ndp=1")
    overrides(tmp_path).apply({name})
    assert (sysctl.read(ours), sysctl.read(other)) == ("1", "1")
    overrides(tmp_path).release(())
    assert (sysctl.read(ours), sysctl.read(other)) == ("0", "1")


@pytest.mark.parametrize(
    "bridge", ["gone", "", ".", "..", "all", "default", "../../kernel", "a b", "x" * 300, "n\0", "n\n"]
)
def test_an_interface_that_is_not_there_is_a_fault(links: Links, tmp_path: Path, bridge: str) -> None:
    switched = overrides(tmp_path).apply({bridge, "virbr1"})
    assert switched.changed
    (fault,) = switched.faults.values()
    assert fault.isprintable()
    assert on(links) == ["virbr1"]
