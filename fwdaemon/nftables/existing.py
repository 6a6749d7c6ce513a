"""Which nftables tables, base chains and commented rules there are, asked of the kernel itself.

`nft` reads every rule of the host before it says so little. Sources: nfnetlink(7) framing, `enum nft_msg_types`,
`NFTA_TABLE_*`, `NFTA_CHAIN_*`, `NFTA_HOOK_*` and `NFTA_RULE_*` in linux/netfilter/nf_tables.h, families in
linux/netfilter.h, and what `nft` keeps with a rule in libnftnl/udata.h.
"""

import signal
import struct
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Final, NamedTuple

from fwdaemon.config.names import NFT_NAME
from fwdaemon.core.bans import End, Rule, Verdict, read_listing
from fwdaemon.core.report import LIBVIRT_CHAIN, LIBVIRT_TABLE, Fault, FaultKind
from fwdaemon.core.types import Family, Gate
from fwdaemon.errors import KernelError, ProcessError, ends_the_pass
from fwdaemon.kernel.netlink import NETFILTER, Message, NetlinkSocket, attribute, attributes, nested
from fwdaemon.kernel.process import Runner
from fwdaemon.nftables.difference import Observed
from fwdaemon.nftables.gates import (
    COMMENT,
    IPTABLES_NAMES,
    NFT_NAMES,
    FoundRule,
    GateState,
    Wanted,
    iptables_program,
    is_iptables_gate,
    only_chain,
    orphaned_gates,
    read_iptables,
    read_native,
    read_rules,
    spellings,
    wanted_gates,
)
from fwdaemon.nftables.generation import LISTINGS, JudgedMaps
from fwdaemon.nftables.guest_paths import iptables_paths, native_paths
from fwdaemon.nftables.model import TABLE_NAME, Table, read_table

_SUBSYSTEM: Final = 10 << 8
_GET_TABLE, _GET_CHAIN, _GET_RULE = (_SUBSYSTEM | kind for kind in (1, 4, 7))
_GET_SET, _GET_ELEMENTS, _GET_GENERATION = (_SUBSYSTEM | kind for kind in (10, 13, 16))
_GENERIC: Final = struct.Struct("!BBH")  # nfgenmsg: family, version, resource
_FAMILIES: Final = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
_NUMBERS: Final = {name: number for number, name in _FAMILIES.items()}
_EVERY_FAMILY: Final = 0
_TABLE, _NAME, _HOOK, _TYPE = 1, 3, 4, 7
_HOOK_NUMBER, _PRIORITY = 1, 2
_RULE_CHAIN, _RULE_HANDLE, _RULE_USER_DATA = 2, 3, 7
_SET_NAME, _ELEMENTS_OF = 2, 2  # NFTA_SET_NAME, NFTA_SET_ELEM_LIST_SET; the table is number 1 in both
# NFTA_SET_ELEM_LIST_ELEMENTS; NFTA_SET_ELEM_DATA and _FLAGS with NFT_SET_ELEM_CATCHALL; NFTA_DATA_VERDICT;
# NFTA_VERDICT_CODE and _CHAIN.
_ELEMENTS: Final = 3
_ELEMENT_DATA, _ELEMENT_FLAGS, _CATCH_ALL = 2, 3, 2
_DATA_VERDICT, _VERDICT_CODE, _VERDICT_CHAIN = 2, 1, 2
# NFT_JUMP and NFT_GOTO; NF_DROP, NFT_CONTINUE and NFT_RETURN.
_JUMP, _GOTO = -3, -4
_CODES: Final = {0: Verdict.REFUSES, -1: Verdict.NONE, -5: Verdict.RETURNS}
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
        KernelError: the kernel does not answer.

    """
    return frozenset(map(name_of_table, _listed(_GET_TABLE)))


def hooked_chains() -> list[HookedChain]:
    """Give every base chain in this network namespace.

    Raises:
        KernelError: the kernel does not answer.

    """
    chains = map(read_hooked_chain, _listed(_GET_CHAIN))
    return [chain for chain in chains if chain is not None]


def is_iptables(chain: HookedChain) -> bool:
    """Whether a chain is one of iptables-nft's, which lists its tables better than `nft` does."""
    return chain.family in ("ip", "ip6") and chain.table in _IPTABLES_TABLES and chain.name in _IPTABLES_CHAINS


def has_rules(family: str, table: str, chain: str) -> bool:
    """Whether there is such a chain and it is not empty.

    Raises:
        KernelError: the kernel does not answer.

    """
    return any(True for _ in _rules(family, table, chain))


def comments(family: str, table: str, chain: str) -> list[str]:
    """Give the comments of a chain's rules, in order; none where there is no such chain.

    Raises:
        KernelError: the kernel does not answer.

    """
    return [read_rule(message).comment for message in _rules(family, table, chain)]


def has_larger_set(family: str, table: str, size: int) -> bool:
    """Whether a table has a set or map for whose elements the kernel takes more bytes than this.

    Raises:
        KernelError: the kernel does not answer.

    """
    listed = _listed(_GET_SET, _NUMBERS[family], attribute(_TABLE, f"{table}\0".encode()))
    names = [_text(_opened(message)[1], _SET_NAME) for message in listed]
    return any(is_larger(family, table, name, size) for name in names)


def is_larger(family: str, table: str, name: str, size: int) -> bool:
    """Whether the kernel takes more bytes than this to list a set's elements; it is asked for no more than that.

    Raises:
        KernelError: the kernel does not answer, as where there is no such set.

    """
    return sum(len(message.body) for message in _elements(family, table, name, size)) > size


def ends_of_map(gate: Gate, name: str) -> frozenset[End] | None:
    """Give what the elements of a verdict map in a gate's table lead to: of a large one, the first thousands tell."""
    with suppress(KernelError):
        listed = _elements(gate.family, gate.table, name, _LARGE_SET)
        return frozenset(end for message in listed for end in read_ends(message))
    return None


def elements_of(family: Family, name: str) -> Iterator[Message]:
    """List the elements of a set of our own table; raises as `is_larger` does."""
    return _elements(family.word, TABLE_NAME, name, sys.maxsize)


def _elements(family: str, table: str, name: str, size: int) -> Iterator[Message]:
    """List the elements of a set up to the message with which the kernel takes more bytes than this."""
    named = attribute(_TABLE, f"{table}\0".encode()) + attribute(_ELEMENTS_OF, f"{name}\0".encode())
    total = 0
    try:
        with NetlinkSocket(NETFILTER) as asking:
            for message in asking.stream(_GET_ELEMENTS, _GENERIC.pack(_NUMBERS[family], 0, 0) + named):
                total += len(message.body)
                yield message
                if total > size:
                    return
    except OSError as error:
        raise KernelError(f"the kernel does not list a set of nftables: {error.strerror or error}") from error


def rules_holding(text: str) -> list[FoundRule]:
    """Give every rule that has this text anywhere.

    Raises:
        KernelError: the kernel does not answer.

    """
    return [read_rule(message) for message in _listed(_GET_RULE, holding=text.encode())]


def name_of_table(message: Message) -> tuple[str, str]:
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


def read_ends(message: Message) -> Iterator[End]:
    """Read what elements of a verdict map lead to; one that ends an interval has no verdict."""
    _, found = _opened(message)
    for _, element in nested(found.get(_ELEMENTS, b"")):
        parts = attributes(element)
        verdict = attributes(attributes(parts.get(_ELEMENT_DATA, b"")).get(_DATA_VERDICT, b""))
        if verdict:
            yield _end(int.from_bytes(verdict.get(_VERDICT_CODE, b""), signed=True), _text(verdict, _VERDICT_CHAIN))
        if int.from_bytes(parts.get(_ELEMENT_FLAGS, b"")) & _CATCH_ALL:
            yield End(Verdict.DECIDES)  # for clients that are not named


def _end(code: int, chain: str) -> End:
    if code in (_JUMP, _GOTO):
        return End(Verdict.LEADS, chain, comes_back=code == _JUMP)
    return End(_CODES.get(code, Verdict.DECIDES))


def _comment(data: bytes) -> str:
    """Read the comment in user data, where each value follows a byte of type and one of length."""
    while len(data) > 1:
        kind, length = data[:2]
        if kind == _COMMENT:
            return _text({kind: data[2 : 2 + length]}, kind)
        data = data[2 + length :]
    return ""


def _rules(family: str, table: str, chain: str) -> Iterator[Message]:
    named = attribute(_TABLE, f"{table}\0".encode()) + attribute(_RULE_CHAIN, f"{chain}\0".encode())
    return _listed(_GET_RULE, _NUMBERS[family], named)


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
        raise KernelError("the kernel does not list its nftables rules: they keep changing")
    return (message for message in listed.messages if len(message.body) >= _GENERIC.size)


def _opened(message: Message) -> tuple[str, dict[int, bytes]]:
    family, _, _ = _GENERIC.unpack_from(message.body)
    return _FAMILIES.get(family, str(family)), attributes(message.body[_GENERIC.size :])


def _text(found: dict[int, bytes], kind: int) -> str:
    """Read a name; what is no text in it is replaced."""
    return found.get(kind, b"").rstrip(b"\0").decode(errors="replace")


# Reads what the kernel holds: our tables, the gates, and rules of ours where none should be.

# So many bytes of elements, as the kernel lists them, are some thousand.
_LARGE_SET: Final = 1 << 18


class Observer:
    """Looks at the kernel through `nft` and `iptables-nft`; notes the maps of others by which it judged a gate."""

    def __init__(self, runner: Runner, judged: JudgedMaps) -> None:
        self._runner, self._judged = runner, judged
        self._faults: list[Fault] = []
        self._libvirt = False

    def tables(self, known: Mapping[Family, Table]) -> dict[Family, Table]:
        """Read our tables. What is found equal to `known` is given as the same object; raises as `observe` does."""
        there = existing_tables()
        return {
            family: self._table(family, known.get(family)) for family in Family if (family.word, TABLE_NAME) in there
        }

    def observe(self, generation: int, wanted: Wanted, tables: dict[Family, Table], *, everywhere: bool) -> Observed:
        """Read the wanted gates, beside `tables` of ours; `everywhere` looks for gates that are not wanted, too.

        Raises:
            ProcessError: `nft` could not list what is there, or a program hung.
            KernelError: the kernel could not.

        """
        self._faults = []
        there = existing_tables()
        self._libvirt = any(table == LIBVIRT_TABLE for _, table in there)
        named = wanted_gates(sorted(wanted.families), wanted.configured)
        gates = [gate for gate in named if (gate.family, gate.table) in there]
        states = tuple(state for gate in gates if (state := self.gate(gate, wanted)))
        self._judged.keep_added()
        orphaned = self._orphaned_gates(gates, wanted) if everywhere else ()
        found, searched = orphaned or (), orphaned is not None
        return Observed(
            generation, tables, states, found, tuple(self._faults), libvirt=self._libvirt, searched=searched
        )

    def _table(self, family: Family, known: Table | None) -> Table:
        try:
            listing = self._runner.run(*LISTINGS[family]).stdout
        except ProcessError as error:
            if error.returncode != -signal.SIGABRT:
                raise
            # nft ends where another program gave a chain or set a name that is no text: what holds one is not our
            # table.
            return Table(family, {}, {})
        try:
            return read_table(family, listing, known)
        except KernelError:  # nft 1.0.6 may print nonsense for a table that others gave flags, which ours has not
            return Table(family, {}, {})

    def gate(self, gate: Gate, wanted: Wanted) -> GateState | None:
        """Read a gate; `None` where the table has no such chain, or cannot be changed safely."""
        if is_iptables_gate(gate):
            return self._iptables_gate(gate, wanted)
        listing = self._chain(gate)
        if not listing:
            return None
        lookup = partial(self._rules, gate), partial(self._ends_of_map, gate)
        state = read_native(gate, listing, spellings(wanted.label, NFT_NAMES), wanted.behind, lookup)
        return replace(state, paths=native_paths(gate, listing, wanted.paths, wanted.behind, lookup))

    def _rules(self, gate: Gate, chain: str) -> list[Rule] | None:
        """Read another chain of a gate's table, if `nft` has a name for it."""
        if not NFT_NAME.fullmatch(chain):
            return None
        return read_rules(self._chain(replace(gate, chain=chain)), partial(self._ends_of_map, gate))

    def _ends_of_map(self, gate: Gate, name: str) -> frozenset[End] | None:
        self._judged.add(gate.table, name)
        return ends_of_map(gate, name)

    def _chain(self, gate: Gate) -> str:
        """List the chain of a gate; empty where there is none.

        nft 1.0.6 reads all sets of a table when it is asked for a chain of it, but none when asked for everything.
        That in turn ends where anything has a name that is no text.
        """
        with suppress(KernelError):
            if has_larger_set(gate.family, gate.table, _LARGE_SET):
                terse = self._listed("nft", "-j", "-t", "list", "ruleset", gate.family)
                if terse:
                    return only_chain(gate, terse)
        return self._listed("nft", "-j", "list", "chain", gate.family, gate.table, gate.chain)

    def _listed(self, *argv: str) -> str:
        """Give a listing; empty where the program refuses."""
        try:
            return self._runner.run(*argv).stdout
        except ProcessError as error:
            if ends_the_pass(error):
                raise
            return ""

    def _iptables_gate(self, gate: Gate, wanted: Wanted) -> GateState | None:
        try:
            listing = self._runner.run(iptables_program(gate), "-S", gate.chain).stdout
        except ProcessError as error:
            if ends_the_pass(error):
                raise
            self._faults.append(Fault(FaultKind.GATE_UNREAD, (str(gate),), str(error)))
            return None
        self._libvirt = self._libvirt or LIBVIRT_CHAIN in listing

        # Such as ufw's for its log, which leaves a ban behind the jump to it in force, or one that is to refuse.
        def rules_of(chain: str) -> list[Rule] | None:
            return read_listing(self._listed(iptables_program(gate), "-S", chain))

        state = read_iptables(gate, listing, spellings(wanted.label, IPTABLES_NAMES), wanted.behind, rules_of)
        return replace(state, paths=iptables_paths(gate, listing, wanted.paths, wanted.behind, rules_of))

    def _orphaned_gates(self, gates: list[Gate], wanted: Wanted) -> tuple[GateState, ...] | None:
        try:
            found = rules_holding(COMMENT)
        except KernelError as error:  # as where thousands of rules change all the time: exposures do not wait for this
            self._faults.append(Fault(FaultKind.GATES_UNSEARCHED, detail=str(error)))
            return None
        suspects = {Gate(rule.family, rule.table, rule.chain) for rule in found}.difference(gates)
        iptables = [self._iptables_gate(gate, wanted) for gate in sorted(suspects, key=str) if is_iptables_gate(gate)]
        return orphaned_gates(found, gates) + tuple(state for state in iptables if state and state.every)
