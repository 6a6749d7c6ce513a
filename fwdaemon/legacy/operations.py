"""What a helper does for the daemon on one family's tables, under iptables' own lock."""

from collections.abc import Mapping
from typing import Any

from fwdaemon.legacy import library, wire
from fwdaemon.legacy.difference import Change
from fwdaemon.legacy.errors import RefusedError, TableError
from fwdaemon.legacy.lock import XtablesLock
from fwdaemon.legacy.model import COMMENT, FWD, OWN_PREFIX, Rule, TableName
from fwdaemon.model import Family

# A chain that nothing leads to, for finding out what the kernel does not like. What was left of it would be taken away
# as a chain of ours that nobody wants.
_TRY = f"{OWN_PREFIX}TRY"

# One rule for each match and target that is needed.
_SAMPLES = (
    *(Rule(f"-p {protocol} -m {protocol} --dport 1:2", "ACCEPT", COMMENT) for protocol in ("tcp", "udp", "sctp")),
    Rule("-m addrtype ! --dst-type LOCAL", "RETURN", COMMENT),
    Rule("-m connmark --mark 0x1/0x1", "ACCEPT", COMMENT),
    Rule("-m conntrack --ctstate DNAT", "ACCEPT", COMMENT),
    Rule("", "CONNMARK --set-xmark 0x1/0x1", COMMENT),
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
    """Everything that can be requested (`fwdaemon.legacy.wire`)."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._compiler = library.Compiler(family)
        self._lock = XtablesLock()
        self._open: dict[TableName, library.OpenTable] = {}

    def do(self, request: Mapping[str, Any]) -> Any:
        """Do what a request asks for and give what there is to answer.

        Raises:
            HelperError: it was not done.

        """
        match request["do"]:
            case wire.SELF_TEST:
                return self.self_test()
            case wire.OBSERVE:
                return self.observe(wire.unpack_heads(request["heads"]))
            case wire.COMMIT:
                return self.commit(TableName(request["table"]), wire.unpack_change(request["change"]))
            case _:
                return self.release()

    def self_test(self) -> list[str]:
        """Tell in a sentence each what does not work."""
        samples = (*_SAMPLES, *_NAT_SAMPLES[self._family])
        return [sentence for sentence in map(self._tried, samples) if sentence]

    def observe(self, heads: wire.Heads) -> dict[str, Any]:
        """Take the lock and read these tables; the lock is held until `release`."""
        self._lock.acquire()
        self._open = {table: library.OpenTable(self._family, table) for table in heads}
        return {
            table.value: wire.pack_observed(
                self._open[table].observe({chain: self._compiler.compile(rule) for chain, rule in rules.items()})
            )
            for table, rules in heads.items()
        }

    def commit(self, table: TableName, change: Change) -> None:
        """Change a table that was observed, at once."""
        try:
            self._edit(self._open[table], change)
            self._open[table].commit()
        except TableError as error:
            culprit = None if error.again else self._culprit(table, change)
            naming = f"; what it refuses is the rule {culprit}" if culprit else ""
            raise TableError(f"the legacy table {table} was not changed: {error}{naming}", again=error.again) from error

    def release(self) -> None:
        """Give the lock back."""
        self._open = {}
        self._lock.release()

    def _edit(self, table: library.OpenTable, change: Change) -> None:
        for chain in change.create:
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
        forms = {library.form(rule): rule for rule in reversed(inserted) if not rule.target.startswith(OWN_PREFIX)}
        return next((rule for rule in forms.values() if self._is_refused(name, rule)), None)

    def _is_refused(self, name: TableName, rule: Rule) -> bool:
        try:
            table = library.OpenTable(self._family, name)
            table.create(_TRY)
            table.insert(_TRY, 0, self._compiler.compile(rule))
            table.commit()
        except TableError as error:
            return not error.again
        table = library.OpenTable(self._family, name)
        table.drop(_TRY)
        table.commit()
        return False

    def _tried(self, sample: Rule) -> str | None:
        try:
            self._compiler.compile(sample)
        except RefusedError as error:
            return f"{' '.join(str(sample).split())!r} does not work for IPv{self._family}: {error.reason}"
        return None
