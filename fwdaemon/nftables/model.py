"""nftables' own nouns as far as we need them: tables, chains, rules, sets and verdict maps.

The same `Table` describes what shall be and what is. A rule that was read back is known by its comment alone, so two
chains are equal when their rules' comments are.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2s

from fwdaemon.model import Family

TABLE_NAME = "kvm_portfwd"

# The set of connections that were ended, as the packets of their guests show them.
ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule; `comment` ends in a digest of `expression`, which is empty when the rule was read back."""

    expression: str = field(compare=False)
    comment: str

    @classmethod
    def of(cls, expression: str, label: str) -> "Rule":
        """Make a rule whose comment is `label` (plain ASCII, no quotes) and the digest of its expression."""
        digest = blake2s(expression.encode(), digest_size=6).hexdigest()
        return cls(expression, f"{label} {digest}")

    def __str__(self) -> str:
        return f'{self.expression} comment "{self.comment}"'


@dataclass(frozen=True, slots=True)
class Hook:
    """What makes a chain a base chain; its policy is always accept."""

    type: str
    hook: str
    priority: int

    def __str__(self) -> str:
        return f"type {self.type} hook {self.hook} priority {self.priority}; policy accept;"


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain and its rules in order."""

    rules: tuple[Rule, ...]
    hook: Hook | None = None


@dataclass(frozen=True, slots=True)
class SetType:
    """The declaration of a set, or of a verdict map; `key` is nft's type, parts joined by ` . `.

    With `timeout_s`, elements vanish after so many seconds, and are no part of the state that is compared.
    """

    key: str
    verdict: bool = False
    interval: bool = False
    timeout_s: int = 0

    def __str__(self) -> str:
        verdict = " : verdict" if self.verdict else ""
        interval = " flags interval;" if self.interval else ""
        timeout = f" flags timeout; timeout {self.timeout_s}s;" if self.timeout_s else ""
        return f"type {self.key}{verdict};{interval}{timeout}"


@dataclass(frozen=True, slots=True)
class Set:
    """A set or verdict map. `elements` maps each key to the chain it jumps to; in a plain set to `None`."""

    type: SetType
    elements: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Table:
    """One of our two tables."""

    family: Family
    chains: Mapping[str, Chain]
    sets: Mapping[str, Set]

    @property
    def name(self) -> str:
        """The name as `nft` wants it, `ip kvm_portfwd`."""
        return table_name(self.family)


def family_name(family: Family) -> str:
    """Nftables' word for a family."""
    return "ip" if family is Family.IPV4 else "ip6"


def table_name(family: Family) -> str:
    """Give the full name of our table of a family."""
    return f"{family_name(family)} {TABLE_NAME}"
