"""Rules of whatever system as one kind of thing: tests, changes of the packet, and verdicts. Pure data."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

from fwdaemon.explain.packet import Packet, Place, Surroundings, System
from fwdaemon.explain.truth import Truth


class End(StrEnum):
    """How a packet's way through a chain ends; what a program in user space decides is unclear."""

    ACCEPT = "accept"
    REFUSE = "refuse"
    UNCLEAR = "unclear"


@dataclass(frozen=True, slots=True)
class Match:
    """A test the packet has to pass for the rest of the rule to count."""

    test: Callable[[Packet, Surroundings], Truth]


@dataclass(frozen=True, slots=True)
class Change:
    """Changes the packet and goes on."""

    change: Callable[[Packet], Packet]


@dataclass(frozen=True, slots=True)
class Translate:
    """Sends the connection elsewhere, and accepts; the second argument is the rule's own place."""

    translate: Callable[[Packet, Place], Packet]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Ends the packet's way through the base chain."""

    end: End


@dataclass(frozen=True, slots=True)
class Jump:
    """Goes on in another chain; with `goto`, without coming back to this one."""

    chain: str
    goto: bool = False


@dataclass(frozen=True, slots=True)
class Return:
    """Goes back to where the chain was jumped to from."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A verdict map: gives those verdicts that may apply. Where none does, the rule does not match."""

    choose: Callable[[Packet, Surroundings], Iterable[tuple[Truth, "Statement"]]]


Statement: TypeAlias = Match | Change | Translate | Verdict | Jump | Return | Choice


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule and where it stands."""

    place: Place
    statements: tuple[Statement, ...]


Chains: TypeAlias = Mapping[str, tuple[Rule, ...]]


@dataclass(frozen=True, slots=True)
class BaseChain:
    """A chain the kernel calls by itself. `chains` are all of its table; `devices` are for hooks of one interface."""

    system: System
    family: str
    table: str
    name: str
    kind: str
    hook: str
    priority: int
    accepts: bool
    chains: Chains = field(compare=False, repr=False, default_factory=dict)
    devices: frozenset[str] = frozenset()

    @property
    def policy(self) -> Place:
        """Where its policy stands, as if it were a rule."""
        return Place(self.system, self.family, self.table, self.name, 0)

    def __str__(self) -> str:
        return f"{self.family} {self.table} {self.name}"
