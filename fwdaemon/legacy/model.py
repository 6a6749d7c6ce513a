"""The legacy tables' own nouns: rules as iptables writes them, our chains, and the heads of the kernel's own chains."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import blake2s

from fwdaemon.core.types import Address, GateFault

# What every rule of ours in a chain that is not ours says of itself.
COMMENT = "kvm-portfwd"
PRE, OUT, POST, FWD = "KVMPF_PRE", "KVMPF_OUT", "KVMPF_POST", "KVMPF_FWD"
# Where exposures had their rules in versions before: it is taken away where it is found, and never made.
FORMER = "KVMPF_LEAD"
# Chains of these names are ours, in any table; all others belong to others, however alike.
OWN_CHAINS = frozenset({PRE, OUT, POST, FWD, FORMER})


class TableName(StrEnum):
    """The legacy tables we use; the value is iptables' name."""

    FILTER = "filter"
    MANGLE = "mangle"
    NAT = "nat"


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: what it matches, and its target with options, each written the way `iptables-legacy-save` does.

    `comment` is plain ASCII; that of a rule in a chain of ours ends in a digest of the rest.
    """

    matches: str
    target: str
    comment: str

    @classmethod
    def of(cls, matches: str, target: str, label: str) -> "Rule":
        """Make a rule whose comment is `label` (plain ASCII, no quotes) and the digest of everything else."""
        digest = blake2s(f"{matches} -j {target}".encode(), digest_size=6).hexdigest()
        return cls(matches, target, f"{label} {digest}")

    def __str__(self) -> str:
        comment = f'"{self.comment}"' if " " in self.comment else self.comment
        return f"{self.matches} -m comment --comment {comment} -j {self.target}".lstrip()


# The rule that refuses all else where we turned forwarding on.
CONFINED = Rule.of("", "DROP", "confined")


def confined_from(interface: str) -> Rule:
    """Make the rule that does so with what came in by one interface, where we turned it on there alone."""
    return newcomers(f"-i {interface}")


def newcomers(matches: str) -> Rule:
    """Make a rule that refuses some of it."""
    return Rule.of(matches, "DROP", "newcomers")


@dataclass(frozen=True, slots=True)
class Table:
    """What is ours in one table: `chains` whole and in order, and one rule at the head of each chain in `heads`."""

    chains: Mapping[str, tuple[Rule, ...]] = field(default_factory=dict)
    heads: Mapping[str, Rule] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Head:
    """What was found of ours in one of the kernel's own chains.

    `positions` count from 0. `good` says that the only one is right to the letter, `first` that the foremost one is at
    its place: `place` counts the rules that stay ahead of it, which are bans. `foreign` counts everybody else's rules,
    `policy` is what becomes of the rest.
    """

    positions: tuple[int, ...] = ()
    good: bool = False
    first: bool = False
    foreign: int = 0
    policy: str = "ACCEPT"
    place: int = 0

    @property
    def holds(self) -> bool:
        """Whether it is as it shall be."""
        return self.good and self.first

    @property
    def fault(self) -> GateFault:
        """What is wrong with it."""
        if not self.positions:
            return GateFault.ABSENT
        if not self.first:
            return GateFault.AHEAD_OF_BAN if self.positions[0] < self.place else GateFault.BEHIND_RULE
        return GateFault.REPEATED if len(self.positions) > 1 else GateFault.ALTERED


@dataclass(frozen=True, slots=True)
class ObservedTable:
    """What one table holds of ours: the comments in each chain of ours, and the heads that were asked for.

    `held` are chains of ours that rules of others lead to, so that the kernel would not let them be deleted.
    """

    chains: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    heads: Mapping[str, Head] = field(default_factory=dict)
    held: frozenset[str] = frozenset()


def host(address: Address) -> str:
    """Write one address the way listings do."""
    return f"{address}/{address.max_prefixlen}"


def labelled(bit: int) -> str:
    """Write the match of connections that our rules let in."""
    return f'-m connlabel --label "{bit}"'


def unlabelled(bit: int) -> str:
    """Write the match of all other connections."""
    return f'-m connlabel ! --label "{bit}"'


def labelling(bit: int) -> str:
    """Write what labels a connection, as the last of the matches; it fails where a connection can have no labels."""
    return f"{labelled(bit)} --set"
