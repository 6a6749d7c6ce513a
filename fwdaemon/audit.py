"""The audit: one line for each change, which a person can read months later.

It says what happened (`added`, `removed`, `restored`, …), to which domain, from where to where, and why. Names of
domains and processes are anybody's text and are escaped. Nothing is written when nothing changed.
"""

import logging
from collections.abc import Iterable

from fwdaemon.desired import Forward, Waiting
from fwdaemon.naming import shown
from fwdaemon.outcome import GateChange

_log = logging.getLogger("fwdaemon.audit")


def forward(action: str, changed: Forward, cause: str) -> None:
    """Write that a forward was `added`, `removed` or `restored`."""
    name = shown(changed.domain)
    _log.info("%s %s: %s -> %s (%s)", action, name, changed.listens_at(), changed.leads_to(), cause)


def gates(changed: Iterable[GateChange], cause: str) -> None:
    """Write a line for each gate that was made, or put back to the head of its chain."""
    for change in changed:
        action = "restored" if change.restored else "added"
        _log.info("%s gate in %s: %s (%s)", action, change.gate, change.fault, cause)


def waiting(entries: Iterable[Waiting]) -> None:
    """Write a line for each entry that has no live forward, with the reason."""
    for entry in entries:
        _log.info("waiting %s: %s (%s)", shown(entry.domain), entry.reason, entry.origin)


def moved(text: str) -> None:
    """Say in which of the kernel's rule systems the rules are now, and why."""
    _log.info("%s", text)


def adopted(number: int) -> None:
    """Say how many forwards of an earlier run were found in good order."""
    _log.info("adopted %d forwards that an earlier run left in the kernel", number)


def leftovers(names: Iterable[str]) -> None:
    """Write a line for all that is left of an earlier run and nobody asks for any more, by the kernel's own names."""
    for name in sorted(names):
        _log.info("removed %s, left by an earlier run (no longer wanted)", name)


def connections_ended(number: int) -> None:
    """Say how many connections of forwards that went, or lead elsewhere now, were ended."""
    _log.info("ended %d connections of forwards that changed", number)


def forwarding_turned_on(sysctl: str) -> None:
    """Say that a sysctl was written."""
    _log.info("turned on %s: forwards need it", sysctl)


def problems(texts: Iterable[str]) -> None:
    """Say what could not be done, or what is wrong."""
    for text in texts:
        _log.warning("%s", text)
