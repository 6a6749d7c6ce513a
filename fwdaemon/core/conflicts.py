"""Who else has what exposures take, as data: processes of the host, and rules of other programs. Pure.

`fwdaemon.conflicts` finds them, and `fwdaemon.audit.rules` has the words. They are equal while the same is to be said.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, TypeAlias

from fwdaemon.core.types import Address, Origin, PortRange, Protocol


@dataclass(frozen=True, slots=True)
class Entry:
    """What one port string takes, whatever the family: what it would not get is for `domain`.

    A `protocol` of `None` is all of them with every port, an `address` of `None` every address of the host. Where it
    `is_restricted`, some connections to its ports are none of its business. Where it `yields`, as a pattern does, it
    takes nothing from a process that was there first.
    """

    domain: str
    origin: Origin | None
    protocol: Protocol | None
    address: Address | None
    ports: PortRange
    interface: str | None
    is_restricted: bool
    yields: bool = False


class Holder(NamedTuple):
    """A process, by the name and number that the kernel gives, and one of its sockets; unnamed where none is known."""

    name: str
    protocol: Protocol
    port: int


@dataclass(frozen=True, slots=True)
class ListenerConflict:
    """An entry and the processes that it takes from; `places` are where they listen, unless that is where it does."""

    entry: Entry
    holders: tuple[Holder, ...]
    places: tuple[str, ...]


class Order(StrEnum):
    """Whose rule a packet comes to first."""

    OURS = "ours"
    THEIRS = "theirs"
    UNKNOWN = "unknown"  # that of the chain that was made last


@dataclass(frozen=True, slots=True)
class RuleConflict:
    """An entry, and the tool whose rules in which chain translate it too; `None` where no tool is known for them.

    Of several ports, `ports` are those in question, each with its protocol unless the entry has but one.
    """

    entry: Entry
    owner: str | None
    order: Order
    chain: str
    ports: tuple[tuple[PortRange, Protocol | None], ...]


Conflict: TypeAlias = ListenerConflict | RuleConflict
