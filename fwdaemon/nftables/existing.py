"""Which nftables tables, base chains and commented rules there are, asked of the kernel itself.

`nft` reads every rule of the host before it tells so little. Sources: nfnetlink(7) framing, `enum nft_msg_types`,
`NFTA_TABLE_*`, `NFTA_CHAIN_*`, `NFTA_HOOK_*` and `NFTA_RULE_*` in linux/netfilter/nf_tables.h, families in
linux/netfilter.h, and what `nft` keeps with a rule in libnftnl/udata.h.
"""

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from fwdaemon.errors import KernelError
from fwdaemon.netlink import Message, attribute, attributes
from fwdaemon.netlink_socket import NETFILTER, NetlinkSocket
from fwdaemon.nftables.model import FoundRule

_SUBSYSTEM: Final = 10 << 8
_GET_TABLE, _GET_CHAIN, _GET_RULE, _GET_GENERATION = (_SUBSYSTEM | kind for kind in (1, 4, 7, 16))
_GENERIC: Final = struct.Struct("!BBH")  # nfgenmsg: family, version, resource
_FAMILIES: Final = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
_NUMBERS: Final = {name: number for number, name in _FAMILIES.items()}
_EVERY_FAMILY: Final = 0
_TABLE, _NAME, _HOOK, _TYPE = 1, 3, 4, 7
_HOOK_NUMBER, _PRIORITY = 1, 2
_RULE_CHAIN, _RULE_HANDLE, _RULE_USER_DATA = 2, 3, 7
_COMMENT: Final = 0  # NFTNL_UDATA_RULE_COMMENT
# Tables that iptables-nft writes are known by a base chain with one of its names.
_IPTABLES_TABLES: Final = frozenset({"filter", "nat", "mangle", "raw", "security"})
_IPTABLES_CHAINS: Final = frozenset({"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"})
# A commit in between makes a listing worth nothing; they come in bursts.
_TRIES: Final = 20


class HookedChain(NamedTuple):
    """A base chain, which packets come to by themselves; `hook` is its number in the kernel's list for that family."""

    family: str
    table: str
    name: str
    kind: str
    hook: int
    priority: int

    def __str__(self) -> str:
        return f"{self.family} {self.table} {self.name}"


def existing_tables() -> frozenset[tuple[str, str]]:
    """Give family (`ip`, `inet`…) and name of every table in this network namespace.

    Raises:
        KernelError: the kernel does not tell.

    """
    return frozenset(map(read_table, _listed(_GET_TABLE)))


def hooked_chains() -> list[HookedChain]:
    """Give every base chain in this network namespace.

    Raises:
        KernelError: the kernel does not tell.

    """
    chains = map(read_hooked_chain, _listed(_GET_CHAIN))
    return [chain for chain in chains if chain is not None]


def is_iptables(chain: HookedChain) -> bool:
    """Tell whether a chain is one of iptables-nft's, which lists its tables better than `nft` does."""
    return chain.family in ("ip", "ip6") and chain.table in _IPTABLES_TABLES and chain.name in _IPTABLES_CHAINS


def has_rules(family: str, table: str, chain: str) -> bool:
    """Tell whether there is such a chain and it is not empty.

    Raises:
        KernelError: the kernel does not tell.

    """
    named = attribute(_TABLE, f"{table}\0".encode()) + attribute(_RULE_CHAIN, f"{chain}\0".encode())
    return any(True for _ in _listed(_GET_RULE, _NUMBERS[family], named))


def rules_holding(text: str) -> list[FoundRule]:
    """Give every rule that has this text anywhere.

    Raises:
        KernelError: the kernel does not tell.

    """
    return [read_rule(message) for message in _listed(_GET_RULE, holding=text.encode())]


def read_table(message: Message) -> tuple[str, str]:
    """Read family and name of a table."""
    family, found = _opened(message)
    return family, _text(found, _TABLE)


def read_hooked_chain(message: Message) -> HookedChain | None:
    """Read a chain; `None` is one that packets come to from other chains alone."""
    family, found = _opened(message)
    hook = attributes(found.get(_HOOK, b""))
    if not hook:
        return None
    number, priority = (int.from_bytes(hook.get(kind, b""), signed=True) for kind in (_HOOK_NUMBER, _PRIORITY))
    return HookedChain(family, _text(found, _TABLE), _text(found, _NAME), _text(found, _TYPE), number, priority)


def read_rule(message: Message) -> FoundRule:
    """Read where a rule is, and its comment."""
    family, found = _opened(message)
    handle, comment = int.from_bytes(found.get(_RULE_HANDLE, b"")), _comment(found.get(_RULE_USER_DATA, b""))
    return FoundRule(family, _text(found, _TABLE), _text(found, _RULE_CHAIN), handle, comment)


def _comment(data: bytes) -> str:
    """Read the comment in user data, where each value follows a byte of type and one of length."""
    while len(data) > 1:
        kind, length = data[:2]
        if kind == _COMMENT:
            return _text({kind: data[2 : 2 + length]}, kind)
        data = data[2 + length :]
    return ""


def _listed(kind: int, family: int = _EVERY_FAMILY, picked: bytes = b"", holding: bytes = b"") -> Iterator[Message]:
    try:
        with NetlinkSocket(NETFILTER) as asking:
            # The kernel ends a listing before an entry of 4 KiB, as if there were no more, unless the socket has
            # received something before (max_recvmsg_len in af_netlink.c).
            asking.ask(_GET_GENERATION, _GENERIC.pack(_EVERY_FAMILY, 0, 0))
            listed = asking.listing(kind, _GENERIC.pack(family, 0, 0) + picked, tries=_TRIES, holding=holding)
    except OSError as error:
        raise KernelError(f"the kernel does not list its nftables rules: {error.strerror or error}") from error
    if not listed.whole:
        raise KernelError("the kernel does not list its nftables rules: they change all the time")
    return (message for message in listed.messages if len(message.body) >= _GENERIC.size)


def _opened(message: Message) -> tuple[str, dict[int, bytes]]:
    family, _, _ = _GENERIC.unpack_from(message.body)
    return _FAMILIES.get(family, str(family)), attributes(message.body[_GENERIC.size :])


def _text(found: dict[int, bytes], kind: int) -> str:
    """Read a name; what is no text in it is replaced."""
    return found.get(kind, b"").rstrip(b"\0").decode(errors="replace")
