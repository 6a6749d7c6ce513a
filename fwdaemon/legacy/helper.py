"""The helper: a program of its own that works on iptables-legacy of one family, `… -m fwdaemon.legacy.helper 4`.

It answers requests (`fwdaemon.legacy.model`) on standard input until that ends, and with it the process that started
it. Signals to end it are ignored, since it is of use until its owner is done. After the library has refused a rule it
answers, and ends, because it is not known what state the library is in then.
"""

import ctypes
import fcntl
import json
import os
import re
import signal
import struct
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from socket import inet_pton
from types import FrameType
from typing import Any, Final, TextIO

from fwdaemon.core.bans import before_refusal
from fwdaemon.core.types import Family
from fwdaemon.errors import label_remedy
from fwdaemon.legacy import library, model
from fwdaemon.legacy.info import LAYOUT, MATCH, Entry, decode, is_path, lock_path, matches, read_rule
from fwdaemon.legacy.library import HelperError, LibraryError, LockError, RefusedError, TableError
from fwdaemon.legacy.model import COMMENT, FWD, OUT, Change, Edit, Rule, TableName, is_own, labelled, labelling

_FORWARD = "FORWARD"
# How the names of libvirt's chains begin.
_LIBVIRTS = "LIBVIRT_"

# The lock all of iptables' own programs take, so that no change is lost between a read and a commit.


class XtablesLock:
    """Holds the lock or not. For the main thread of a process that uses SIGALRM for nothing else.

    The file stays open in between, so that a program that watches it sees only others come and go.
    """

    def __init__(self) -> None:
        self._path = lock_path()
        self._file = -1
        self._held = False
        signal.signal(signal.SIGALRM, _give_up)

    def acquire(self, patience: float) -> None:
        """Take the lock, unless it is held already.

        Raises:
            LockError: it was not free within `patience` seconds.

        """
        if self._held:
            return
        signal.setitimer(signal.ITIMER_REAL, patience)
        try:
            self._open()
            fcntl.flock(self._file, fcntl.LOCK_EX)
        except TimeoutError as error:
            raise LockError(f"another program has held {self._path} for more than {patience:g} seconds") from error
        except OSError as error:
            raise LockError(f"cannot lock {self._path}: {error.strerror}") from error
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        self._held = True

    def release(self) -> None:
        """Give the lock back, if it is held."""
        if self._held:
            fcntl.flock(self._file, fcntl.LOCK_UN)
            self._held = False

    def _open(self) -> None:
        """Open the file there is now; it may have been replaced."""
        if self._file >= 0 and not _same(self._file, self._path):
            os.close(self._file)
            self._file = -1
        if self._file < 0:
            self._file = os.open(self._path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _same(file: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(file), Path(path).stat())
    except FileNotFoundError:
        return False


def _give_up(_number: int, _frame: FrameType | None) -> None:
    raise TimeoutError


# Rules of forwards in the kernel's form. Thousands differ in port, target and comment alone: the library takes 0.2 ms
# for each rule, and to write these into the bytes of one that is like it takes 6 µs.
#
# Sources: `struct xt_tcp` and `xt_udp` in linux/netfilter/xt_tcpudp.h, which begin with the ranges of both ports,
# `struct xt_comment_info`, and `struct nf_nat_range2` in linux/netfilter/nf_nat.h.
_FROM: Final = re.compile(r"(.*-m (tcp|udp) --dport )(\d+)( .*)")
_TO: Final = re.compile(r"DNAT --to-destination \[?([0-9a-f.:]+?)\]?:(\d+)")
_PORTS_AT, _PORTS = 4, struct.Struct("=HH")
_RANGE_AT, _RANGES = 4, {Family.IPV4: struct.Struct("!4s12x4s12xHH"), Family.IPV6: struct.Struct("!16s16sHH")}
_TEXT: Final = struct.Struct("256s")
_MOST_TEMPLATES: Final = 1000


class _Template:
    """A rule as the library made it, and where it has what differs; `proven` once it gave what the library makes."""

    def __init__(self, family: Family, raw: bytes, protocol: str) -> None:
        self._raw, self._range, self.proven = raw, _RANGES[family], False
        target, *_ = LAYOUT[family].unpack_from(raw)
        places, at = {}, LAYOUT[family].size + MATCH.size
        for name, _, data in matches(raw, LAYOUT[family].size, target):
            places[name] = at
            at += len(data) + MATCH.size
        self._ports, self._text = places[protocol.encode()] + _PORTS_AT, places[b"comment"]
        self._to = target + MATCH.size + _RANGE_AT

    def filled(self, port: int, address: bytes, to_port: int, comment: str) -> Any:
        """Make a rule that differs in these."""
        made = bytearray(self._raw)
        _PORTS.pack_into(made, self._ports, port, port)
        _TEXT.pack_into(made, self._text, comment.encode())
        self._range.pack_into(made, self._to, address, address, to_port, to_port)
        return (ctypes.c_ubyte * len(made)).from_buffer(made)


class Templates:
    """Makes rules by the library, and those of forwards from one that is like them, if that gives the very same."""

    def __init__(self, family: Family, compiler: library.Compiler) -> None:
        self._family, self._compiler = family, compiler
        self._known: dict[tuple[str, str], _Template] = {}

    def compile(self, rule: Rule) -> Any:
        """Give the buffer that `library.OpenTable` takes; raises as the library's compiler does."""
        asked, led = _FROM.fullmatch(rule.matches), _TO.fullmatch(rule.target)
        if asked is None or led is None or model.SET_MATCH in rule.matches:
            return self._compiler.compile(rule)
        before, protocol, port, behind = asked.groups()
        values = int(port), inet_pton(self._family.domain, led[1]), int(led[2]), rule.comment
        template = self._known.get((before, behind))
        if template is not None and template.proven:
            return template.filled(*values)
        made = self._compiler.compile(rule)
        if template is not None:
            template.proven = bytes(template.filled(*values)) == bytes(made)
        elif len(self._known) < _MOST_TEMPLATES:
            self._known[before, behind] = _Template(self._family, bytes(made), protocol)
        return made


# What a helper does for the daemon on one family's tables, under iptables' own lock.

# A chain that is needed in no such table, for finding out what the kernel does not like. What was left of it would be
# taken away as a chain of ours that is not wanted.
_TRY = {TableName.FILTER: OUT, TableName.MANGLE: OUT, TableName.NAT: FWD}

# One rule for each match and target that is needed.
_SAMPLES = (
    *(Rule(f"-p {protocol} -m {protocol} --dport 1:2", "ACCEPT", COMMENT) for protocol in ("tcp", "udp", "sctp")),
    Rule("-m addrtype ! --dst-type LOCAL", "RETURN", COMMENT),
    Rule(labelled(1), "ACCEPT", COMMENT),
    Rule("-m conntrack --ctstate DNAT", "ACCEPT", COMMENT),
    Rule(labelling(1), "RETURN", COMMENT),
    Rule("", "MASQUERADE", COMMENT),
    Rule("! -i lo", "DROP", COMMENT),
    Rule("-p tcp", "REJECT --reject-with tcp-reset", COMMENT),
    Rule("", FWD, COMMENT),
)
_NAT_SAMPLES = {
    Family.IPV4: (
        Rule("-p tcp", "DNAT --to-destination 192.0.2.1:3-4/1", COMMENT),
        Rule("", "DNAT --to-destination 192.0.2.1", COMMENT),
        Rule("-o lo", "SNAT --to-source 192.0.2.1", COMMENT),
    ),
    Family.IPV6: (
        Rule("-p tcp", "DNAT --to-destination [2001:db8::1]:3-4/1", COMMENT),
        Rule("", "DNAT --to-destination 2001:db8::1", COMMENT),
        Rule("-o lo", "SNAT --to-source 2001:db8::1", COMMENT),
    ),
}


class Operations:
    """Everything that can be requested (`fwdaemon.legacy.model`)."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._compiler = Templates(family, library.Compiler(family))
        self._lock = XtablesLock()
        self._open: dict[TableName, library.OpenTable] = {}

    def do(self, request: Mapping[str, Any]) -> Any:
        """Do what a request asks for and give what there is to answer.

        Raises:
            HelperError: it was not done.

        """
        match request["do"]:
            case model.SELF_TEST:
                return self.self_test()
            case model.TRY:
                return [self._hindrance(model.unpack_rule(packed)) for packed in request["rules"]]
            case model.OBSERVE:
                heads = model.unpack_heads(request["heads"])
                return self.observe(heads, request["behind"], request["patience"])
            case model.COMMIT:
                return self.commit(TableName(request["table"]), model.unpack_change(request["change"]))
            case model.PATHS:
                rules = list(map(model.unpack_rule, request["rules"]))
                return self.paths(rules, request["behind"], request["patience"])
            case _:
                return self.release()

    def self_test(self) -> list[str]:
        """Say in a sentence each what does not work."""
        samples = (*_SAMPLES, *_NAT_SAMPLES[self._family])
        return [sentence for sentence in map(self._tried, samples) if sentence]

    def observe(self, heads: model.Heads, behind: Collection[str], patience: float) -> dict[str, Any]:
        """Take the lock, which may take `patience` seconds, and read these tables; it is held until `release`.

        Bans are rules of the table filter: in the others, nothing stays ahead of ours.
        """
        self._lock.acquire(patience)
        self._open = {table: library.OpenTable(self._family, table) for table in heads}
        return {
            table.value: model.pack_observed(
                self._open[table].observe(
                    {chain: self._compiler.compile(rule) for chain, rule in rules.items()},
                    behind if table is TableName.FILTER else None,
                )
            )
            for table, rules in heads.items()
        }

    def paths(self, rules: Iterable[Rule], behind: Collection[str], patience: float) -> dict[str, Any]:
        """Take the lock as `observe` does, and return what brings the rules of guests' paths to their place."""
        self._lock.acquire(patience)
        self._open = {TableName.FILTER: library.OpenTable(self._family, TableName.FILTER)}
        wanted = {rule: decode(self._family, bytes(self._compiler.compile(rule))) for rule in rules}
        edit = _path_edit(self._family, self._open[TableName.FILTER], wanted, behind)
        return model.pack_change(Change(edits=(edit,) if edit.delete or edit.insert else ()))

    def commit(self, table: TableName, change: Change) -> None:
        """Change a table that was observed, at once."""
        try:
            self._edit(self._open[table], change)
            self._open[table].commit()
        except TableError as error:
            culprit = None if error.again else self._culprit(table, change)
            naming = f"; what it refuses is the rule {culprit}{label_remedy(culprit.matches)}" if culprit else ""
            text = f"the iptables-legacy table {table} was not changed: {error}{naming}"
            raise TableError(text, again=error.again) from error

    def release(self) -> None:
        """Give the lock back."""
        self._open = {}
        self._lock.release()

    def _edit(self, table: library.OpenTable, change: Change) -> None:
        for chain in change.create:
            if not table.has(chain):  # one of limits that others emptied is not known as ours
                table.create(chain)
        for edit in change.edits:
            for position in sorted(edit.delete, reverse=True):
                table.delete(edit.chain, position)
            for position, rule in edit.insert:
                table.insert(edit.chain, position, self._compiler.compile(rule))
        table.drop(*change.drop)

    def _culprit(self, name: TableName, change: Change) -> Rule | None:
        """Find a rule that the kernel refuses by itself, in an unlinked chain; one of each form is tried."""
        inserted = [rule for edit in change.edits for _, rule in edit.insert]
        forms = {_form(rule): rule for rule in reversed(inserted) if not is_own(rule.target)}
        return next((rule for rule in forms.values() if self._is_refused(name, rule)), None)

    def _is_refused(self, name: TableName, rule: Rule) -> bool:
        chain, table = _TRY[name], library.OpenTable(self._family, name)
        if table.has(chain):  # others may have rules that lead there
            return False
        try:
            table.create(chain)
            table.insert(chain, 0, self._compiler.compile(rule))
            table.commit()
        except TableError as error:
            return not error.again
        table = library.OpenTable(self._family, name)
        table.drop(chain)
        table.commit()
        return False

    def _tried(self, sample: Rule) -> str | None:
        if (reason := self._hindrance(sample)) is None:
            return None
        text = " ".join(str(sample).split())
        return f"{text!r} does not work for IPv{self._family}: {reason}{label_remedy(sample.matches)}"

    def _hindrance(self, sample: Rule) -> str | None:
        try:
            self._compiler.compile(sample)
        except RefusedError as error:
            return error.reason
        return None


def _path_edit(family: Family, table: library.OpenTable, wanted: Mapping[Rule, Entry], behind: Collection[str]) -> Edit:
    """Say what brings these rules, each as the kernel has it, to where FORWARD refuses whatever is left."""
    entries = list(table.entries(_FORWARD))
    ours = tuple(number for number, entry in enumerate(entries) if is_path(family, entry))
    place = _refusal(family, table, [entry for number, entry in enumerate(entries) if number not in ours], behind)
    first = 0 if place is None else place
    right = [] if place is None else list(wanted.values())
    if [entries[number] for number in ours] == right and ours == tuple(range(first, first + len(ours))):
        return Edit(_FORWARD)
    return Edit(_FORWARD, ours, tuple(enumerate(wanted, first)) if place is not None else ())


def _refusal(family: Family, table: library.OpenTable, others: Iterable[Entry], behind: Collection[str]) -> int | None:
    """Count the rules ahead of that; `None` where the chain refuses nothing, or libvirt's own rules are in it."""
    rules = []
    for entry in others:
        if entry.target.startswith(_LIBVIRTS) and table.rules(entry.target):
            return None
        rules.append(read_rule(family, entry))
    return before_refusal(rules, table.rules, behind, accepts=table.policy(_FORWARD) == "ACCEPT")


def _form(rule: Rule) -> tuple[str, ...]:
    """Name the matches and the target of a rule: those of one form are taken or refused alike."""
    words = library.parse(rule)
    return (*(match.name for match in words.matches), words.target.name)


Do = Callable[[Mapping[str, Any]], Any]


def _prepared(family: Family) -> Do:
    """Load the library, which takes 250 ms; where that cannot be done, that is the answer to everything."""
    try:
        return Operations(family).do
    except Exception as error:  # noqa: BLE001  the library does much while it is imported, and raises anything
        reason = f"python-iptables cannot be used: {error}"

    def refuse(_: Mapping[str, Any]) -> Any:
        raise LibraryError(reason)

    return refuse


def _answer(do: Do, request: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        return {"ok": do(request)}
    except HelperError as error:
        return {"error": str(error), "final": error.final, "unusable": error.unusable, "late": error.late}


def _serve(do: Do, requests: Iterable[str], answers: TextIO) -> None:
    for line in requests:
        answer = _answer(do, json.loads(line))
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        if answer.get("final"):
            return


def _own_channels() -> tuple[TextIO, TextIO]:
    """Take standard input and output for ourselves alone: the library, and what it starts, get nothing and nowhere."""
    requests, answers = os.dup(0), os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1):
        os.dup2(nowhere, standard)
    os.close(nowhere)
    return os.fdopen(requests, encoding="utf-8"), os.fdopen(answers, "w", encoding="utf-8")


def main() -> None:
    """Serve the family named on the command line until standard input ends."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    requests, answers = _own_channels()
    _serve(_prepared(Family(int(sys.argv[1]))), requests, answers)


if __name__ == "__main__":
    main()
