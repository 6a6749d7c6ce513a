"""Which interfaces lead away from the host, and not to guests or containers on it; read from /sys/class/net.

A port of a bridge says less of itself than an interface that stands alone: the host's end of a container's link looks
like the uplink of a host that is itself a container. So on a bridge only that counts as leading away which has a
device, or is built on something that leads away: a bond, a VLAN.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

LINKS: Final = Path("/sys/class/net")
_TAP = 0x0002  # IFF_TAP, linux/if_tun.h: a guest is at the other end
_BUILT_ON = "lower_"


def outer_interfaces(links: Path = LINKS) -> frozenset[str]:
    """Name them: those that have no master, and are neither lo, nor a tap, nor a bridge without a way out.

    One that comes or goes meanwhile is named or not.
    """
    try:
        with os.scandir(links) as entries:
            names = [entry.name for entry in entries if entry.is_dir() and entry.name != "lo"]
    except OSError:
        return frozenset()
    return frozenset(
        name for name in names if not os.path.lexists(links / name / "master") and _leads_away(links / name)
    )


def _leads_away(link: Path) -> bool:
    if _is_tap(link):
        return False
    built_on = list(_built_on(link))  # of a bridge, its ports
    if (link / "bridge").exists():
        return any(map(_has_way_out, built_on))
    return not built_on or any(map(_leads_away, built_on))


def _has_way_out(port: Path) -> bool:
    return (port / "device").exists() or any(map(_leads_away, _built_on(port)))


def _is_tap(link: Path) -> bool:
    try:
        return bool(int((link / "tun_flags").read_text(), 16) & _TAP)
    except (OSError, ValueError):  # it is not of this kind, or has gone
        return False


def _built_on(link: Path) -> Iterator[Path]:
    """Give the interfaces below another one."""
    try:
        with os.scandir(link) as entries:
            names = [entry.name for entry in entries if entry.name.startswith(_BUILT_ON)]
    except OSError:
        return iter(())
    return (link.parent / name.removeprefix(_BUILT_ON) for name in names)
