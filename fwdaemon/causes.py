"""Which of the things that were heard explains a change, for the audit. Pure.

Events arrive in bursts and in any order: the kernel may tell that a guest's neighbour entry came before libvirt tells
that the domain started. So a reason that names the domain is preferred, then what the state itself says, then all
that was heard.
"""

from collections.abc import Iterable

from fwdaemon.desired import Desired, Forward
from fwdaemon.naming import shown

AT_A_COMPARISON = "found at a regular comparison"
_MOST = 3


def told(reasons: Iterable[str]) -> str:
    """Tell the first reasons; after a burst the rest would not help a reader."""
    every = list(reasons)
    more = [f"and {len(every) - _MOST} more"] if len(every) > _MOST else []
    return "; ".join([*every[:_MOST], *more]) or AT_A_COMPARISON


def of_start(forward: Forward, before: Desired, reasons: Iterable[str]) -> str:
    """Tell why a forward is live now that was not in the state `before`."""
    heard = list(reasons)
    stopped = any(entry.stopped and entry.domain == forward.domain for entry in before.waiting)
    now = [f"domain {shown(forward.domain)} is running now"] if stopped else heard
    return told(_naming(forward.domain, heard) or now)


def of_end(forward: Forward, after: Desired, reasons: Iterable[str]) -> str:
    """Tell why a forward is not in the state `after` any more."""
    heard = list(reasons)
    waiting = [entry.reason for entry in after.waiting if entry.domain == forward.domain and not entry.stopped]
    return told(_naming(forward.domain, heard) or dict.fromkeys(waiting) or heard)


def _naming(domain: str, reasons: Iterable[str]) -> list[str]:
    name = f" domain {shown(domain)} "
    return [reason for reason in reasons if name in f" {reason} "]
