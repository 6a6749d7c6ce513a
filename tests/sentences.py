"""What people read about a result: for tests of what it says to them, as the rest of them look at the facts."""

from fwdaemon.audit.lines import format_fault, format_note
from fwdaemon.audit.rules import format_location_reason
from fwdaemon.core.report import ApplyResult, Fault, FaultKind, Location


def faults(result: ApplyResult) -> tuple[str, ...]:
    """Say what could not be done."""
    return tuple(map(format_fault, result.faults))


def notes(result: ApplyResult) -> tuple[str, ...]:
    """Say what an administrator has to know."""
    return tuple(map(format_note, result.notes))


def place(location: Location | None) -> tuple[str, str] | None:
    """Name the backend that rules are in, and say why."""
    return None if location is None else (location.backend, format_location_reason(location.reason))


def error(text: str) -> Fault:
    """Give a fault of which this is all that is said."""
    return Fault(FaultKind.ERROR, detail=text)
