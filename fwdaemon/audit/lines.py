"""The audit, line by line."""

import logging
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Final, TypeAlias

from fwdaemon.audit.causes import format_cause, why
from fwdaemon.audit.throttle import Flapped
from fwdaemon.config.files import about_ignored
from fwdaemon.core.exposures import Exposure, Owner
from fwdaemon.core.report import Assigned, Cause, GateChange, Setting
from fwdaemon.core.state import Waiting
from fwdaemon.core.text import printable, shown
from fwdaemon.core.types import Origin
from fwdaemon.errors import Problem

# The audit: one line for each change, which a person can read months later.
#
# It says what happened (`added`, `removed`, `restored`, …), to which domain or network, from where to where, and why.
# Names of domains and processes are anybody's text and are escaped in it. Nothing is written when nothing changed.
#
# Each line carries the same as fields for the journal, in `record.journal`: `PORTFWD_ACTION`, `PORTFWD_DOMAIN` or
# `PORTFWD_NETWORK`, `PORTFWD_LISTEN`, `PORTFWD_TARGET`, `PORTFWD_CAUSE`, and a `MESSAGE_ID`, by which the catalog
# (`systemd/kvm-portfwd.catalog`) explains it. The fields hold names as they are.
_log = logging.getLogger("fwdaemon.audit")

Fields: TypeAlias = dict[str, str]

# Made once with uuid4 and never changed, as people search for them (sd_journal_print(3)).
MESSAGE_IDS: Final = {
    "added": "ca77a81aa3554599add0708efd079551",
    "removed": "5f6741e7993842329d5a0ceff56415bb",
    "restored": "cb5edc2f5ce24856ae3c8759d69ef7be",
    "waiting": "7d2f4c60768140a8b03280356192e5bb",
    "assigned": "dc953e92568c45debfe30f3380da4bb9",
    "declined": "21c85a8a3f094ce3add4cee1c48306c1",
    "adopted": "4d567da7df8f4466bbe096a3db8b9bba",
    "ended": "fef759c7ba8842fd8f3ec266c2456a74",
    "moved": "16db21cce5354404be20362ba5644dc9",
    "flapping": "aa4a0229053346a49ef5ae865bb34af3",
    "problem": "6907d2a132474a41893de37aaff2dd8e",
    "noted": "8a6e9577c64f4ea58a0d13c09fca611f",
    "loaded": "4332fb5b140f43c3b02a53f9aaf05eb9",
    "refused": "7e462be721144e0ca69bdf49dd7177dd",
}


def exposure(action: str, changed: Exposure, cause: Cause) -> None:
    """Write that an exposure was `added`, `removed` or `restored`."""
    fields = _fields(changed, cause)
    allowed = changed.origin.allowed if changed.origin is not None else None
    if allowed is not None and action != "removed":
        fields |= {"PORTFWD_CAUSE": f"{fields['PORTFWD_CAUSE']}; allowed by {printable(str(allowed))}"}
    what = f"{_who(changed.owner)}: {fields['PORTFWD_LISTEN']} -> {fields['PORTFWD_TARGET']}"
    _write(action, f"{action} {what} ({fields['PORTFWD_CAUSE']})", fields)


def flapped(entries: Iterable[Flapped]) -> None:
    """Say how often something changed whose changes were not written one by one."""
    for entry in entries:
        times = f"{entry.number} more changes in {entry.seconds:.0f} s"
        times += f", the last: {entry.action} ({format_cause(entry.cause)})"
        match entry.subject:
            case GateChange() as change:
                what, fields = f"gate in {change.gate}: {change.fault}", _gate_fields(change, entry.cause)
            case Setting(name):
                what, fields = shown(name), {"PORTFWD_CAUSE": format_cause(entry.cause)}
            case changed:
                what = f"{_who(changed.owner)}: {changed.listens_at()} -> {changed.leads_to()}"
                fields = _fields(changed, entry.cause)
        _write("flapping", f"flapping {what}: {times}", fields, logging.WARNING)


def gate(change: GateChange, cause: Cause) -> None:
    """Write that a gate was `added`, or put back to its place, which is `restored`."""
    text = f"{change.action} gate in {change.gate}: {change.fault} ({format_cause(cause)})"
    _write(change.action, text, _gate_fields(change, cause))


def waiting(entries: Iterable[Waiting]) -> None:
    """Write a line for each entry that has no live exposure, with the reason."""
    # An entry that waits gets one line, not one for each of its ports.
    apart = dict.fromkeys(entry if entry.refused else replace(entry, claim=None) for entry in entries)
    for entry in apart:
        reason = why(entry.reason)
        fields = _owner_field(entry.owner) | {"PORTFWD_CAUSE": reason}
        if entry.declined:
            text = f"declined {_who(entry.owner)}: {entry.claim}, {reason} ({entry.origin})"
            _write("declined", text, fields | {"PORTFWD_LISTEN": str(entry.claim)})
        else:
            _write("waiting", f"waiting {_who(entry.owner)}: {reason} ({entry.origin})", fields)


def assigned(ports: Iterable[Assigned]) -> None:
    """Say which ports of the host were assigned to domains, and which others they replace."""
    for item in ports:
        listen, target = f"{item.protocol} *:{item.port}", f"{item.protocol} {item.guest}"
        text = f"assigned {item.port} to {shown(item.domain)}: {target} ({item.origin})"
        cause = "" if item.moved is None else f"{item.moved} {_why_not(item.claimed)}"
        fields = {"PORTFWD_DOMAIN": item.domain, "PORTFWD_LISTEN": listen, "PORTFWD_TARGET": target}
        fields |= {"PORTFWD_CAUSE": cause} if cause else {}
        _write("assigned", f"{text}, since {cause}" if cause else text, fields)


def _why_not(claimed: Origin | None) -> str:
    return "is not among auto_ports" if claimed is None else f"is claimed at {claimed}"


def moved(text: str) -> None:
    """Say in which of the kernel's rule systems the rules are now, and why."""
    _write("moved", text)


def adopted(number: int) -> None:
    """Say how many forwards, 1:1 addresses and routes of an earlier run were found in good order."""
    _write("adopted", f"adopted {number} forwards that an earlier run left in the kernel")


def leftovers(names: Iterable[str]) -> None:
    """Write a line for all that is left of an earlier run and nobody asks for any more, by the kernel's own names."""
    for name in sorted(names):
        _write("removed", f"removed {name}, left by an earlier run (no longer wanted)")


def connections_ended(number: int) -> None:
    """Say how many connections of forwards that went, or lead elsewhere now, were ended."""
    _write("ended", f"ended {number} connections of forwards that changed")


def strangers_ended(number: int) -> None:
    """Say how many connections were ended that nothing was there to refuse."""
    _write("ended", f"ended {number} connections that passed while rules were missing: nothing was forwarded before")


def setting(change: Setting, cause: Cause) -> None:
    """Write that a setting of the host was changed, or put back."""
    if change.restored:
        _write(
            "restored", f"restored {shown(change.what)} ({format_cause(cause)})", {"PORTFWD_CAUSE": format_cause(cause)}
        )
    else:
        _write("added", f"set {shown(change.what)}: forwards need it")


def notes(texts: Iterable[str]) -> None:
    """Say what an administrator has to know of a setting that was changed."""
    for text in texts:
        _write("noted", text)


def problems(texts: Iterable[str]) -> None:
    """Say what could not be done, or what is wrong."""
    for text in texts:
        _write("problem", text, level=logging.WARNING)


def configuration_loaded(path: Path) -> None:
    """Say that a configuration is in force."""
    _write("loaded", f"configuration {path} loaded")


def configuration_refused(found: Iterable[Problem]) -> None:
    """Say what is wrong with a new configuration, and that it changes nothing."""
    for problem in found:
        _write("refused", str(problem), level=logging.ERROR)
    _write("refused", "configuration refused; the old one stays in force", level=logging.ERROR)


def set_loaded(name: str, file: Path, number: int) -> None:
    """Say that the file of a set was read again."""
    _write("loaded", printable(f"set {name}: {number} networks read from {file}"))


def set_refused(name: str, found: Iterable[Problem]) -> None:
    """Say what is wrong with the file of a set, and that it changes nothing."""
    for problem in found:
        _write("refused", printable(str(problem)), level=logging.ERROR)
    _write("refused", f"set {name}: what was read before stays in force", level=logging.ERROR)


def last_good_in_force(found: Iterable[Problem], kept_at: datetime) -> None:
    """Say what is wrong with the configuration at the start, and what is in force in its place."""
    for problem in found:
        _write("refused", str(problem), level=logging.ERROR)
    when = f"{kept_at.astimezone():%Y-%m-%d %H:%M:%S %z}"
    _write("refused", f"configuration refused; the last good one stays in force, of {when}", level=logging.ERROR)


def drop_ins_ignored(files: Iterable[Path]) -> None:
    """Say which files beside the drop-ins are not read, as their names are not those of drop-ins."""
    for file in files:
        _log.warning("%s", printable(about_ignored(file)))


def _write(action: str, text: str, fields: Fields | None = None, level: int = logging.INFO) -> None:
    every = {"MESSAGE_ID": MESSAGE_IDS[action], "PORTFWD_ACTION": action, **(fields or {})}
    _log.log(level, "%s", text, extra={"journal": every})


def _fields(changed: Exposure, cause: Cause) -> Fields:
    return {
        **_owner_field(changed.owner),
        "PORTFWD_LISTEN": changed.listens_at(),
        "PORTFWD_TARGET": changed.leads_to(),
        "PORTFWD_CAUSE": format_cause(cause),
    }


def _gate_fields(change: GateChange, cause: Cause) -> Fields:
    return {"PORTFWD_GATE": str(change.gate), "PORTFWD_CAUSE": format_cause(cause)}


def _owner_field(owner: Owner) -> Fields:
    return {f"PORTFWD_{owner.kind.upper()}": owner.name}


def _who(owner: Owner) -> str:
    """Name a domain by its name alone: most lines are about one."""
    return shown(owner.name) if owner.kind == "domain" else f"{owner.kind} {shown(owner.name)}"
