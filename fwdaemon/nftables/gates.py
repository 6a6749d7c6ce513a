"""Gates: one constant rule at the head of each foreign forward chain that could refuse our connections.

An accept in a table of our own does not help: the packet still meets every other base chain of the hook, and one
refusal is enough. So the rule has to be *in* that chain, and *first*: a rule that is present below a refusal is dead.

A chain of iptables-nft is changed through iptables-nft alone, since a native rule in it can make iptables refuse the
whole table. Chains are never created here.
"""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from fwdaemon.config.model import Gate
from fwdaemon.config.names import NFT_NAME
from fwdaemon.model import Family
from fwdaemon.naming import rule_lines
from fwdaemon.nftables.model import FoundRule, family_name
from fwdaemon.nftables.readback import Item, items

COMMENT = "kvm-portfwd"
# Where libvirt writes its rules: a table of its own, or a chain linked from iptables' FORWARD.
LIBVIRT_TABLE = "libvirt_network"
LIBVIRT_CHAIN = "LIBVIRT_FWI"
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_KNOWN_CHAINS = ((LIBVIRT_TABLE, "forward"), ("filter", "FORWARD"))


@dataclass(frozen=True, slots=True)
class GateState:
    """A foreign forward chain as it is.

    `ours` refers to each of our rules in it, in the form its own program takes to delete them; `first` says whether a
    good one is at the head.
    """

    gate: Gate
    ours: tuple[str, ...]
    first: bool

    @property
    def open(self) -> bool:
        """Whether our connections pass: exactly one rule of ours, and at the head."""
        return self.first and len(self.ours) == 1

    @property
    def fault(self) -> str:
        """What is wrong with a gate that is not open, for the audit."""
        if not self.ours:
            return "it was not there"
        return "it was there more than once" if self.first else "another rule was ahead of it"


def is_iptables_gate(gate: Gate) -> bool:
    """Whether a chain is iptables-nft's FORWARD."""
    return gate.family in ("ip", "ip6") and (gate.table, gate.chain) == ("filter", "FORWARD")


def wanted_gates(families: Iterable[Family], configured: Iterable[Gate]) -> tuple[Gate, ...]:
    """List the chains that are to have a gate where they exist: libvirt's, iptables-nft's and those configured."""
    names = [family_name(family) for family in families]
    known = [Gate(name, *chain) for name in names for chain in _KNOWN_CHAINS]
    return tuple(dict.fromkeys([*known, *(gate for gate in configured if gate.family in {*names, "inet"} and names)]))


def read_native(gate: Gate, listing: str, mark: int) -> GateState:
    """Read `nft -j list chain` of one gate."""
    rules = tuple(items(listing, "rule"))
    ours = tuple(f"handle {rule['handle']}" for rule in rules if rule.get("comment") == COMMENT)
    return GateState(gate, ours, first=bool(rules) and _is_gate(rules[0], mark))


def read_iptables(gate: Gate, listing: str, mark: int) -> GateState:
    """Read `iptables-nft -S FORWARD`."""
    lines = rule_lines(listing)
    rules = [line.removeprefix("-A FORWARD ") for line in lines if line.startswith("-A FORWARD ")]
    # What stands inside quotes is somebody's text, ours needs none.
    ours = tuple(rule for rule in rules if f"--comment {COMMENT} " in _QUOTED.sub('""', rule))
    return GateState(gate, ours, first=bool(rules) and rules[0] == _iptables_rule(mark))


def strays(found: Iterable[FoundRule], gates: Collection[Gate]) -> tuple[GateState, ...]:
    """Pick the native rules with our comment in chains that are to have none.

    We make them where `nft` has a name for the chain, and without one could not take them away.
    """
    commented = (rule for rule in found if rule.comment == COMMENT)
    named = (rule for rule in commented if NFT_NAME.fullmatch(rule.table) and NFT_NAME.fullmatch(rule.chain))
    chains = [(Gate(rule.family, rule.table, rule.chain), rule.handle) for rule in named]
    return tuple(GateState(gate, (f"handle {handle}",), first=False) for gate, handle in chains if gate not in gates)


def closing_script(state: GateState) -> list[str]:
    """Take every rule of ours out of a native chain."""
    return [f"delete rule {state.gate} {reference}" for reference in state.ours]


def opening_script(state: GateState, mark: int) -> list[str]:
    """Make or move a gate: what there is of ours goes and one rule comes to the head, in one transaction."""
    gate = f'insert rule {state.gate} ct mark and {mark:#010x} == {mark:#010x} accept comment "{COMMENT}"'
    return [*closing_script(state), gate]


def iptables_script(state: GateState, mark: int | None) -> str:
    """Write what `iptables-nft-restore --noflush` takes: our rules go, and with a `mark` one comes to the head."""
    lines = [f"-D FORWARD {rule}" for rule in state.ours]
    if mark is not None:
        lines.append(f"-I FORWARD 1 {_iptables_rule(mark)}")
    return "\n".join(["*filter", *lines, "COMMIT", ""])


def gate_script(state: GateState, mark: int | None) -> str:
    """Write what makes or moves a gate, or without a `mark` closes it, for the program that changes its chain."""
    if is_iptables_gate(state.gate):
        return iptables_script(state, mark)
    lines = closing_script(state) if mark is None else opening_script(state, mark)
    return "".join(f"{line}\n" for line in lines)


def _iptables_rule(mark: int) -> str:
    return f"-m connmark --mark {mark:#x}/{mark:#x} -m comment --comment {COMMENT} -j ACCEPT"


def _is_gate(rule: Item, mark: int) -> bool:
    """Whether a rule is ours to the letter; this one body is simple enough that nft prints it back the same."""
    marked = {"match": {"op": "==", "left": {"&": [{"ct": {"key": "mark"}}, mark]}, "right": mark}}
    return bool(rule.get("comment") == COMMENT and rule["expr"] == [marked, {"accept": None}])
