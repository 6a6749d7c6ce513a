"""Interfaces as ports of a bridge (rtnetlink(7), linux/if_link.h)."""

import struct

from fwdaemon.netlink import attribute, attributes, number
from fwdaemon.rtnetlink.client import Rtnetlink

_GET, _SET = 18, 19  # RTM_GETLINK, RTM_SETLINK
_FIXED = struct.Struct("=BxHiII")  # ifinfomsg: family, type, index, flags, which flags change
_BRIDGE = 7  # AF_BRIDGE
_MASTER, _PORT_SETTINGS = 10, 12 | 0x8000  # IFLA_MASTER, IFLA_PROTINFO with the mark of a nested attribute
_HAIRPIN_MODE = 4  # IFLA_BRPORT_MODE


def master(kernel: Rtnetlink, index: int) -> int | None:
    """Give the number of the bridge, or what else, an interface is a port of."""
    body = kernel.entry(_GET, _FIXED.pack(0, 0, index, 0, 0))
    return None if body is None else number(attributes(body[_FIXED.size :]).get(_MASTER))


def set_hairpin_mode(kernel: Rtnetlink, index: int, *, hairpin: bool) -> None:
    """Switch a bridge port.

    Raises:
        RefusedError: the interface is no port of a bridge.

    """
    setting = attribute(_PORT_SETTINGS, attribute(_HAIRPIN_MODE, bytes([hairpin])))
    kernel.change(_SET, 0, _FIXED.pack(_BRIDGE, 0, index, 0, 0) + setting)
