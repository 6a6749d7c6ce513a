"""What a backend hears, finds and does, as the rest of the program is told of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from fwdaemon.config.model import Gate
from fwdaemon.desired import Opening
from fwdaemon.errors import PortfwdError


class RulesChanged(Protocol):
    """Whoever wants to hear that the kernel's rules changed."""

    def __call__(self, meddler: str, *, thorough: bool) -> None:
        """Say who changed them; `thorough` asks for a look at everything."""
        ...


@dataclass(frozen=True, slots=True)
class GateChange:
    """A gate that was made, or moved back to the head of its chain, because of `fault`."""

    gate: Gate
    restored: bool
    fault: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """One reconcile of the kernel's rules.

    `mended` are openings that did not work before and do now; `damaged` are those of them that we had made work.
    `stale` names, as the kernel does, where openings are that nobody asks for. `faults` are sentences about what could
    not be done, and `refused` names the openings that do not work for one of them. `changed` says whether anything was
    committed, `script` what of it went through `nft`. `moved` tells in which rule system the rules are, and why, when
    that is another one than before.
    """

    mended: frozenset[Opening] = frozenset()
    damaged: frozenset[Opening] = frozenset()
    stale: frozenset[str] = frozenset()
    gates: tuple[GateChange, ...] = ()
    faults: tuple[str, ...] = ()
    script: str = ""
    changed: bool = False
    moved: str = ""
    refused: tuple[tuple[Opening, str], ...] = ()


def joined(one: Outcome, other: Outcome) -> Outcome:
    """Tell two outcomes as one."""
    return Outcome(
        one.mended | other.mended,
        one.damaged | other.damaged,
        one.stale | other.stale,
        one.gates + other.gates,
        one.faults + other.faults,
        one.script + other.script,
        one.changed or other.changed,
        one.moved or other.moved,
        one.refused + other.refused,
    )


def tried(act: Callable[[], Outcome]) -> Outcome:
    """Do something; that it failed is a fault, and no reason to leave the rest undone."""
    try:
        return act()
    except PortfwdError as error:
        return Outcome(faults=(str(error),))
