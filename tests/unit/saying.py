"""Reasons and actors in the words of the audit, and causes in any words."""

from fwdaemon.audit.lines import told
from fwdaemon.core.report import Actor, Cause, Reason, ReasonKind


def said(fact: Reason | Actor) -> str:
    """Give the words for one."""
    return told(Cause((fact,)))


def because(text: str) -> Cause:
    """Give a cause with these words."""
    return Cause((Reason(ReasonKind.WAITING, detail=text),))
