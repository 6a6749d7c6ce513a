"""The audit, line by line, and the words for what is wrong: with gates, with the host, with what was asked for."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Final, TypeAlias

from fwdaemon.audit.causes import declined, format_cause, remark, why
from fwdaemon.audit.journal import MESSAGE_IDS
from fwdaemon.audit.rules import format_conflict, format_gate, format_location_reason
from fwdaemon.audit.throttle import Flapped
from fwdaemon.config.files import about_ignored
from fwdaemon.core.exposures import Exposure, Owner
from fwdaemon.core.inventory import HijackedAddress
from fwdaemon.core.report import (
    AnyFault,
    Assigned,
    Cause,
    Closing,
    Fault,
    FaultKind,
    GateChange,
    Location,
    Note,
    NoteKind,
    Setting,
    SettingKind,
)
from fwdaemon.core.state import Namesake, Unchosen, Waiting
from fwdaemon.core.text import printable, shown
from fwdaemon.core.types import Origin
from fwdaemon.errors import Problem

# The audit: one line for each change, which a person can read months later.
#
# It says what happened (`added`, `removed`, `restored`, …), to which domain or network, from where to where, and why.
# Names of domains and processes are any text and are escaped in it. Nothing is written when nothing changed.
#
# Each line carries the same as fields for the journal, in `record.journal`: `PORTFWD_ACTION`, `PORTFWD_DOMAIN` or
# `PORTFWD_NETWORK`, `PORTFWD_LISTEN`, `PORTFWD_TARGET`, `PORTFWD_CAUSE`, and a `MESSAGE_ID`, by which the catalog
# (`systemd/kvm-portfwd.catalog`) explains it. The fields hold names as they are.
_log = logging.getLogger("fwdaemon.audit")

Fields: TypeAlias = dict[str, str]
_OWNER: Final = {"domain": "PORTFWD_DOMAIN", "network": "PORTFWD_NETWORK"}


def exposure(action: str, changed: Exposure, cause: Cause) -> None:
    """Write that an exposure was `added`, `removed` or `restored`."""
    because = format_cause(cause)
    if action != "removed" and (allowed := _allowed_by(changed.origin)):
        because = "; ".join([because, *allowed])
    fields = _fields(owner := changed.owner, changed, because)
    what = f"{_who(owner)}: {fields['PORTFWD_LISTEN']} -> {fields['PORTFWD_TARGET']}"
    _write(action, f"{action} {what} ({because})", fields)


def flapped(entries: Iterable[Flapped]) -> None:
    """Say how often something changed whose changes were not written one by one."""
    for entry in entries:
        times = f"{entry.number} more changes in {entry.seconds:.0f} s"
        times += f", the last: {entry.action} ({format_cause(entry.cause)})"
        match entry.subject:
            case GateChange() as change:
                what, fields = format_gate(change), _gate_fields(change, entry.cause)
            case Setting() as changed:
                what, fields = shown(format_setting(changed)), {"PORTFWD_CAUSE": format_cause(entry.cause)}
            case changed:
                fields = _fields(changed.owner, changed, format_cause(entry.cause))
                what = f"{_who(changed.owner)}: {fields['PORTFWD_LISTEN']} -> {fields['PORTFWD_TARGET']}"
        _write("flapping", f"flapping {what}: {times}", fields, logging.WARNING)


def gate(change: GateChange, cause: Cause) -> None:
    """Write that a gate was `added`, or put back to its place, which is `restored`."""
    text = f"{change.action} {format_gate(change)} ({format_cause(cause)})"
    _write(change.action, text, _gate_fields(change, cause))


def waiting(entries: Iterable[Waiting]) -> None:
    """Write a line for each entry that has no live exposure, with the reason."""
    # An entry that waits gets one line, not one for each of its ports.
    apart = dict.fromkeys(entry if entry.refused else replace(entry, claim=None) for entry in entries)
    for entry in apart:
        reason = why(entry.reason)
        fields = _owner_field(entry.owner) | {"PORTFWD_CAUSE": reason}
        if entry.declined:
            text = f"declined {_who(entry.owner)}: {declined(entry)}"
            _write("declined", text, fields | {"PORTFWD_LISTEN": str(entry.claim)})
        else:
            _write("waiting", f"waiting {_who(entry.owner)}: {reason} ({entry.origin})", fields)


def assigned(ports: Iterable[Assigned]) -> None:
    """Say which ports of the host were assigned to domains, and which others they replace."""
    for item in ports:
        listen, target = f"{item.protocol} *:{item.port}", f"{item.protocol} {item.guest}"
        allowed = _allowed_by(item.origin)
        text = f"assigned {item.port} to {shown(item.domain)}: {target} ({'; '.join([str(item.origin), *allowed])})"
        since = [] if item.moved is None else [f"{item.moved} {_why_not(item.claimed)}"]
        fields = {"PORTFWD_DOMAIN": item.domain, "PORTFWD_LISTEN": listen, "PORTFWD_TARGET": target}
        fields |= {"PORTFWD_CAUSE": "; ".join([*since, *allowed])} if since or allowed else {}
        _write("assigned", ", since ".join([text, *since]), fields)


def _allowed_by(origin: Origin | None) -> list[str]:
    """Name the `[[allow]]` that lets a domain have it, where it takes one."""
    return [] if origin is None or origin.allowed is None else [f"allowed by {printable(str(origin.allowed))}"]


def _why_not(claimed: Origin | None) -> str:
    return "is not among auto_ports" if claimed is None else f"is claimed at {claimed}"


def moved(location: Location) -> None:
    """Say in which of the kernel's rule systems the rules are now, and why."""
    _write("moved", f"rules are in {location.title}: {format_location_reason(location.reason)}")


def adopted(number: int) -> None:
    """Say how many forwards, 1:1 addresses and routes of an earlier run were found in good order."""
    _write("adopted", f"adopted {number} forwards that an earlier run left in the kernel")


def leftovers(names: Iterable[str]) -> None:
    """Write a line for all that is left of an earlier run and not wanted any more, by the kernel's own names."""
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
    what, why_now = shown(format_setting(change)), format_cause(cause)
    if change.restored:
        _write("restored", f"restored {what} ({why_now})", {"PORTFWD_CAUSE": why_now})
    else:
        _write("added", f"set {what}: forwards need it")


def notes(found: Iterable[Note]) -> None:
    """Say what an administrator has to know of a setting that was changed."""
    for note in found:
        _write("noted", format_note(note))


def problems(found: Iterable[AnyFault]) -> None:
    """Say what could not be done, or what is wrong."""
    for fault in found:
        _write("problem", format_fault(fault), level=logging.WARNING)


def configuration_loaded(path: Path | str) -> None:
    """Say that a configuration is in force."""
    _write("loaded", f"configuration {path} loaded")


def configuration_refused(found: Iterable[Problem], instead: str = "the old one stays in force") -> None:
    """Say what is wrong with a new configuration, and that it changes nothing."""
    for text in (*map(str, found), f"configuration refused; {instead}"):
        _write("refused", text, level=logging.ERROR)


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
    configuration_refused(found, f"the last good one stays in force, of {_when(kept_at)}")


def opened(domain: str, ports: str, sources: Iterable[str], until: datetime, by: str) -> None:
    """Say that something was opened for a while, and by whom."""
    allowed = ", ".join(sources)
    text = f"opened {ports} to {shown(domain)}{f' from {allowed}' if allowed else ''} until {_when(until)} by {by}"
    fields = {"PORTFWD_DOMAIN": domain, "PORTFWD_CAUSE": by, "PORTFWD_UNTIL": until.isoformat()}
    _write("opened", printable(text), fields)


def closed(domain: str, ports: str, cause: Closing, by: str = "") -> None:
    """Say that what was opened is closed again, why, and by whom or what."""
    why_now = _CLOSINGS[cause].format(by)
    fields = {"PORTFWD_DOMAIN": domain, "PORTFWD_CAUSE": why_now}
    _write("closed", printable(f"closed {ports} to {shown(domain)}: {why_now}"), fields)


def to_confirm(until: datetime) -> None:
    """Say that a configuration is in force until then, unless it is confirmed."""
    _write("unconfirmed", f"unless it is confirmed, the configuration before comes back at {_when(until)}")


def confirmed(path: Path, by: str) -> None:
    """Say that a configuration stays in force."""
    _write("confirmed", printable(f"configuration {path} confirmed by {by}"), {"PORTFWD_CAUSE": by})


def rolled_back(path: Path) -> None:
    """Say that the configuration before is in force again."""
    text = f"configuration {path} was not confirmed; the one before is in force again"
    _write("unconfirmed", text, level=logging.WARNING)


def _when(moment: datetime) -> str:
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S %z}"


def drop_ins_ignored(files: Iterable[Path]) -> None:
    """Say which files beside the drop-ins are not read, as their names are not those of drop-ins."""
    for file in files:
        _log.warning("%s", printable(about_ignored(file)))


def _write(action: str, text: str, fields: Fields | None = None, level: int = logging.INFO) -> None:
    if not _log.isEnabledFor(level):
        return
    record = _log.makeRecord(_log.name, level, "", 0, text, (), None)
    record.journal = {"MESSAGE_ID": MESSAGE_IDS[action], "PORTFWD_ACTION": action, **(fields or {})}
    _log.handle(record)


def _fields(owner: Owner, changed: Exposure, because: str) -> Fields:
    where = {"PORTFWD_LISTEN": changed.listens_at(), "PORTFWD_TARGET": changed.leads_to()}
    return {_OWNER[owner.kind]: owner.name, **where, "PORTFWD_CAUSE": because}


def _gate_fields(change: GateChange, cause: Cause) -> Fields:
    return {"PORTFWD_GATE": str(change.gate), "PORTFWD_CAUSE": format_cause(cause)}


def _owner_field(owner: Owner) -> Fields:
    return {_OWNER[owner.kind]: owner.name}


def _who(owner: Owner) -> str:
    """Name a domain by its name alone: most lines are about one."""
    return shown(owner.name) if owner.kind == "domain" else f"{owner.kind} {shown(owner.name)}"


# What is wrong, and what should be known, in words, and here alone: for the audit, the status and the command line.
#
# The places `{0}`, `{1}`, … are for what a fault or note is about, `{rest}` for all of that but the first.
_FAULTS: Final[Mapping[FaultKind, str]] = {
    FaultKind.ERROR: "{detail}",
    FaultKind.LEFT_BEHIND: "not all could be removed; restart the daemon or run `kvm-portfwd flush` to remove the rest",
    FaultKind.UNWANTED: "{detail} is left in the kernel, and not wanted any more",
    FaultKind.CONNECTIONS_OPEN: "open connections may go on: {detail}",
    FaultKind.CONFIGURATION_LATE: (
        "the configuration cannot be read yet, for example because a file system hangs; the one before stays in force"
        " until then"
    ),
    FaultKind.SET_REFUSED: "set {0}: {detail}",
    FaultKind.TABLE_LEFT_OUT: "{0} is left out on this host: {1} claims the same, and files go before the table",
    FaultKind.MORE_CONFLICTS: "{0} more ports conflict with others' processes or rules: `kvm-portfwd check` lists all",
    FaultKind.HOST_UNCHECKED: "not checked against this host: {detail}",
    FaultKind.RULES_UNCHECKED: "not checked against the rules of other tools: {detail}",
    FaultKind.WRITER_UNKNOWN: "rules stay in {0}, as iptables does not say where it writes to: {detail}",
    FaultKind.LIBVIRT_RULES_GONE: (
        "libvirt's own firewall rules are gone, so its guests may not reach the outside;"
        " restart libvirtd or virtnetworkd to have them written again"
    ),
    FaultKind.GATE_UNREAD: "no gate in {0}: {detail}; name a native chain in [daemon] gates instead",
    FaultKind.GATE_REFUSED: "the gate in {0} could not be changed: {detail}",
    FaultKind.GATE_OWNED: (
        "the gate in {0} could not be changed: {detail}; a running program may own that table alone, as firewalld does"
        " unless NftablesTableOwner=no"
    ),
    FaultKind.GATES_UNSEARCHED: "cannot search other chains for our rules: {detail}",
    FaultKind.LEGACY_GATE: "no gate in the iptables-legacy FORWARD chain: {detail}",
    FaultKind.LEGACY_GATES: "no gate in the iptables-legacy FORWARD chains: {detail}",
    FaultKind.NO_IPSET: "entries with {0} stay closed: iptables-legacy needs ipset for it; install the package ipset",
    FaultKind.ONE_CLOCK: (
        "what is open for a while lasts longer where the clock is put back while no daemon runs: to count down takes"
        " the package ipset in iptables-legacy, and the kernel's match set"
    ),
    FaultKind.NO_MATCH: (
        "entries with {0} stay closed for IPv{1}, as iptables-legacy cannot use its match {2} here: {detail}; load it"
        " with `modprobe xt_{2}`, or install a kernel that has it, such as Debian's linux-image-amd64"
    ),
    FaultKind.NO_EXPRESSION: (
        "{0} needs {1} of nftables, which this kernel refuses: {detail}; load it with `modprobe {2}`, or install a"
        " kernel that has it, such as Debian's linux-image-amd64"
    ),
    FaultKind.LEGACY_CHAIN_HELD: (
        "the chain {0} in the iptables-legacy table {1} of IPv{2} is empty now, but stays, as rules of others lead to"
        " it; delete those ({3} -t {1} -S | grep {0} shows them), then {3} -t {1} -X {0}"
    ),
    FaultKind.HOST_NOT_FORWARDING: "IPv{0} forwarding is off on this host",
    FaultKind.FORWARDING_OFF: "IPv{0} forwarding is off, and [daemon] ip_forward = false leaves it to you",
    FaultKind.INTERFACE_OFF: "IPv{0} forwarding is off on {1}, and [daemon] ip_forward = false leaves it to you",
    FaultKind.FORWARDING_UNGUARDED: (
        "IPv{0} forwarding stays off: the rules that keep this host from being a router are not there"
    ),
    FaultKind.INTERFACE_UNGUARDED: (
        "{0} stays off: no rules block other traffic arriving there; set it to 1 if all of it is to be forwarded"
    ),
    FaultKind.INTERFACE_NOT_FORWARDING: "IPv{0} is not forwarded on {1}: {detail}",
    FaultKind.ROUTE: "{0} is not routed to network {1}: {detail}",
    FaultKind.NO_IPV6: "{0} has no IPv6: {detail}",
    FaultKind.PUBLIC_ADDRESS: "{0} is not assigned to {1}: {detail}",
    FaultKind.PUBLIC_ADDRESS_CHANGED: "{0} on {1} was changed, and cannot be put back: {detail}",
    FaultKind.PROXY: "cannot answer for {0} on {1}: {detail}",
    FaultKind.PROXY_ENTRY: "the kernel does not answer for {0} on {1}: {detail}",
    FaultKind.PROXY_LISTENER: "cannot listen for ARP/ND requests for {rest} on {0}: {detail}",
    FaultKind.HAIRPIN_MODE: "bridge port {0} is not in hairpin mode: {detail}",
    FaultKind.LOOPBACK_BUSY: "the proxy on 127.0.0.1 and ::1 is busy: what changed is not in force there yet",
    FaultKind.LOOPBACK_PORTS: (
        "{0} ports of 127.0.0.1 and ::1 do not answer: too many files would be open (LimitNOFILE=)"
    ),
    FaultKind.LOOPBACK_PORT: "{0} port {1} of {2} does not lead to {3}: {detail}",
    FaultKind.LOOPBACK_PORT_TAKEN: "{0} port {1} of {2} does not lead to {3}: a process of the host listens there",
    FaultKind.TOO_MANY_OPEN: "more than {0} would be open for a while; put permanent ones in the configuration file",
    FaultKind.NOTHING_OPEN: "no such temporary forward; `kvm-portfwd status` lists them",
    FaultKind.NO_AUTO_PORTS: (
        'an automatic port has no range to come from; write auto_ports = "20000-29999" in [daemon]'
    ),
    FaultKind.PORT_TAKEN: "{0}: {detail}; use another port or address",
    FaultKind.PORT_ASSIGNED: (
        "{0}: it is assigned to a domain by auto:…, or was until recently; use another port or address"
    ),
    FaultKind.PORT_UNKNOWN: "{0}: {detail}",
    FaultKind.NOT_KEPT: "it cannot be kept for a restart: {0}: {detail}",
    FaultKind.BEFORE_NOT_KEPT: "what was in force before cannot be kept, so it is not loaded: {detail}",
    FaultKind.BEFORE_NOT_KEPT_IN_TIME: (
        "what was in force before cannot be kept, so it is not loaded: the disk does not answer"
    ),
    FaultKind.NOTHING_TO_CONFIRM: "no configuration waits to be confirmed",
    FaultKind.CONFIRMED_TOO_LATE: (
        "no configuration waits to be confirmed; it was not confirmed in time, and a reload loads it again"
    ),
    FaultKind.CONFIRMATION_NOT_KEPT: "it would come back after a restart: {detail}",
}
_CLOSINGS: Final[Mapping[Closing, str]] = {
    Closing.ASKED: "by {0}",
    Closing.OVER: "its time is over",
    Closing.CLAIMED: "{0} claims it",
    Closing.LACKING: "the configuration has no auto_ports any more, or no set of that name",
}
_NOTES: Final[Mapping[NoteKind, str]] = {
    NoteKind.CONFINING: (
        "IPv{0} forwarding was off before kvm-portfwd: nothing else is forwarded, but for what libvirt lets through for"
        " its networks; to make this host a router, set {1} = 1 in /etc/sysctl.d and ip_forward = false in [daemon],"
        " then run `kvm-portfwd reload` and `sysctl --system`"
    ),
    NoteKind.FORWARDING_NEEDED: (
        "IPv{0} forwarding stays on for everything, as libvirt turns it on for its networks: {rest}"
    ),
    NoteKind.FORWARDING_PUT_BACK: "set {0} = 0 again: it was off before kvm-portfwd",
}
_SETTINGS: Final[Mapping[SettingKind, str]] = {
    SettingKind.SYSCTL: "{0}",
    SettingKind.FORMER_SYSCTL: "{0}, which an earlier version turned on",
    SettingKind.HAIRPIN_MODE: "hairpin mode of bridge port {0}",
}


def format_fault(fault: AnyFault) -> str:
    """Say what is wrong, as one sentence without a full stop."""
    match fault:
        case Fault(kind, about, detail):
            return _filled(_FAULTS[kind], about, detail)
        case Namesake() | Unchosen() | HijackedAddress():
            return remark(fault)
        case conflict:
            return format_conflict(conflict)


def format_note(note: Note) -> str:
    """Say what an administrator has to know."""
    return _filled(_NOTES[note.kind], note.about)


def format_setting(setting: Setting) -> str:
    """Name a setting of the host."""
    return _filled(_SETTINGS[setting.kind], (setting.what,))


def _filled(words: str, about: tuple[str, ...], detail: str = "") -> str:
    names = [shown(name) for name in about]
    return words.format(*names, rest=", ".join(names[1:]), detail=detail)
