"""What one reconcile did, as it is told to whoever asks for the status. Plain data."""

from dataclasses import dataclass

from fwdaemon.desired import Desired, Opening
from fwdaemon.outcome import Outcome


@dataclass(frozen=True, slots=True)
class Change:
    """An opening was `added`, `removed` or `restored`, and why."""

    action: str
    opening: Opening
    cause: str


@dataclass(frozen=True, slots=True)
class Account:
    """What the kernel holds now, what was done for it and what changed.

    `meddler` is who changed rules before, `ended` how many connections were ended.
    """

    desired: Desired
    outcome: Outcome
    changes: tuple[Change, ...]
    meddler: str
    ended: int = 0
