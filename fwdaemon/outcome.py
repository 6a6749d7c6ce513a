"""What a backend found and did in one reconcile, for the audit."""

from dataclasses import dataclass

from fwdaemon.config.model import Gate
from fwdaemon.desired import Forward


@dataclass(frozen=True, slots=True)
class GateChange:
    """A gate that was made, or moved back to the head of its chain, because of `fault`."""

    gate: Gate
    restored: bool
    fault: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """One reconcile of the kernel's rules.

    `mended` are forwards that did not work before and do now; `damaged` are those of them that we had made work.
    `stale` names chains of forwards nobody asks for. `faults` are sentences about what could not be done. `changed`
    says whether anything was committed, `script` what of it went through `nft`.
    """

    mended: frozenset[Forward] = frozenset()
    damaged: frozenset[Forward] = frozenset()
    stale: frozenset[str] = frozenset()
    gates: tuple[GateChange, ...] = ()
    faults: tuple[str, ...] = ()
    script: str = ""
    changed: bool = False
