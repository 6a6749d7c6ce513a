"""Which interfaces lead away from the host, for what no test machine has, and while links come and go."""

from pathlib import Path

from fwdaemon.outer import outer_interfaces


def link(links: Path, name: str, *, device: bool = False, built_on: tuple[str, ...] = (), master: str = "") -> None:
    """Make a link the way /sys/class/net shows it."""
    (links / name).mkdir()
    if device:
        (links / name / "device").mkdir()
    for lower in built_on:
        (links / name / f"lower_{lower}").symlink_to(links / lower)
    if master:
        (links / name / "master").symlink_to(links / master)


def bridge(links: Path, name: str, *ports: str) -> None:
    link(links, name, built_on=ports)
    (links / name / "bridge").mkdir()


def test_a_bridge_with_a_network_card_leads_away(tmp_path: Path) -> None:
    link(tmp_path, "enp1s0", device=True, master="br0")
    bridge(tmp_path, "br0", "vnet0", "enp1s0")
    link(tmp_path, "vnet0", master="br0")
    assert outer_interfaces(tmp_path) == {"br0"}


def test_a_bridge_with_a_vlan_of_a_network_card_leads_away(tmp_path: Path) -> None:
    link(tmp_path, "enp1s0", device=True)
    link(tmp_path, "enp1s0.100", built_on=("enp1s0",), master="br100")
    bridge(tmp_path, "br100", "enp1s0.100")
    assert outer_interfaces(tmp_path) == {"enp1s0", "br100"}


def test_what_is_no_link_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "bonding_masters").write_text("\n")
    link(tmp_path, "lo")
    assert outer_interfaces(tmp_path) == frozenset()


def test_what_is_below_may_have_gone(tmp_path: Path) -> None:
    bridge(tmp_path, "br0", "gone")
    link(tmp_path, "vlan", built_on=("gone",))
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd/tun_flags").mkdir()
    assert outer_interfaces(tmp_path) == {"vlan", "odd"}


def test_without_sysfs_nothing_leads_away(tmp_path: Path) -> None:
    assert outer_interfaces(tmp_path / "absent") == frozenset()
