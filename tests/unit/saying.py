"""Reasons and actors in the words of the audit, causes that differ, and what hinders entries."""

from fwdaemon.audit.causes import format_cause
from fwdaemon.core.inventory import Hindrance, HindranceKind
from fwdaemon.core.report import Actor, Cause, Reason, ReasonKind

STOPPED = Hindrance(HindranceKind.NOT_RUNNING)
NO_ADDRESS = Hindrance(HindranceKind.NO_ADDRESS)
HANDED_OVER = Hindrance(HindranceKind.HANDED_OVER)


def said(fact: Reason | Actor) -> str:
    """Give the words for one."""
    return format_cause(Cause((fact,)))


def because(text: str) -> Cause:
    """Give a cause: a domain of which this was heard."""
    return Cause((Reason(ReasonKind.DOMAIN, "lab1", text),))
