"""Which of the things that were heard explains a change, for the audit. Pure.

Events arrive in bursts and in any order: the kernel may tell that a guest's neighbour entry came before libvirt tells
that the domain started. So a reason that names the owner is preferred, then what the state itself says, then all
that was heard, a new configuration first.
"""

from collections.abc import Iterable
from pathlib import Path

from fwdaemon.desired import Desired, Opening, Owner
from fwdaemon.naming import shown

AT_A_COMPARISON = "found at a regular comparison"
_MOST = 3
_CONFIGURATION = "configuration "


def loaded_again(path: Path) -> str:
    """Tell of a new configuration."""
    return f"{_CONFIGURATION}{path} loaded again"


def told(reasons: Iterable[str]) -> str:
    """Tell the first reasons; after a burst the rest would not help a reader."""
    every = sorted(reasons, key=lambda reason: not reason.startswith(_CONFIGURATION))
    more = [f"and {len(every) - _MOST} more"] if len(every) > _MOST else []
    return "; ".join([*every[:_MOST], *more]) or AT_A_COMPARISON


def of_start(opening: Opening, before: Desired, reasons: Iterable[str]) -> str:
    """Tell why an opening is live now that was not in the state `before`."""
    heard, owner = list(reasons), opening.owner
    now = [f"{owner.kind} {shown(owner.name)} is running now"] if owner in before.stopped else heard
    return told(_naming(owner, heard) or now)


def of_end(opening: Opening, after: Desired, reasons: Iterable[str]) -> str:
    """Tell why an opening is not in the state `after` any more."""
    heard, owner = list(reasons), opening.owner
    return told(_naming(owner, heard) or dict.fromkeys(after.hindrances.get(owner, ())) or heard)


def of_loss(opening: Opening, reasons: Iterable[str], meddler: str) -> str:
    """Tell why something that was in place had to be put back; `meddler` is who changed rules or routes, if anybody."""
    heard = list(reasons)
    if meddler != AT_A_COMPARISON:
        return meddler
    return told(_naming(opening.owner, heard) or heard)


def _naming(owner: Owner, reasons: Iterable[str]) -> list[str]:
    name = f" {owner.kind} {shown(owner.name)} "
    return [reason for reason in reasons if name in f" {reason} "]
