"""Who may connect at all, as the configuration says it and as other programs do: sets, and what domains may ask for.

Every forward, 1:1 address and connection to them is denied to two sets: others fill one, and the other is in a file.
"""

from collections.abc import Mapping
from ipaddress import IPv4Address
from typing import Final

from tests.chaos.listing import NFT
from tests.lab.host import CLIENT4_SECOND

BANNED4: Final = "198.51.100.66"
# Whom another program bans and lets in again.
BANNABLE: Final = (BANNED4, CLIENT4_SECOND)
EXTERNAL, LISTED, OFFICE = "banned", "listed", "office"
DENYING: Final = (EXTERNAL, LISTED)
OFFICE4: Final = "203.0.113.0/24"
FILE: Final = "/etc/portfwd.d/listed.txt"
SETS: Final = f"""\
[[set]]
name = "{EXTERNAL}"
external = true
[[set]]
name = "{LISTED}"
file = "{FILE}"
[[set]]
name = "{OFFICE}"
addresses = ["{OFFICE4}"]
"""
ALLOW: Final = """\
[[allow]]
domains = ["a"]
ports = ["8020-8029"]
"""
# More than are filled in at once.
_CROWD: Final = [str(IPv4Address("10.99.0.0") + number) for number in range(2_100)]
LISTS: Final[Mapping[str, tuple[str, ...]]] = {
    "empty": (),
    "one": (CLIENT4_SECOND,),
    "crowd": (CLIENT4_SECOND, *_CROWD),
}

# What is wrong with the file: a line, or that it is not there. What it held before stays.
BROKEN: Final[Mapping[str, str | None]] = {"broken": "10.99.0.1\nnot an address\n", "gone": None}
# The client outside sends from any of these.
ANYBODY: Final = "100.64.0.0/10"


def change_ban(verb: str, address: str, *, legacy: bool) -> tuple[str, ...]:
    """Give the program that adds someone to the set of others, deletes them from it, or flushes it."""
    if legacy:
        element = () if verb == "flush" else (address,)
        return ("ipset", {"delete": "del"}.get(verb, verb), f"KVMPF_{EXTERNAL}_4", *element)
    if verb == "flush":
        return (NFT, f"flush set ip kvm_portfwd set_{EXTERNAL}")
    return (NFT, f"{verb} element ip kvm_portfwd set_{EXTERNAL} {{ {address} }}")


def list_text(name: str) -> str:
    """Write the file of a set."""
    return "".join(f"{address}\n" for address in ("# who may connect to nothing", *LISTS[name]))
