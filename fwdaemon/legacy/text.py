"""Our rules as text for people, in the form `iptables-legacy-restore --noflush` takes."""

from collections.abc import Iterator, Mapping

from fwdaemon.legacy.difference import Change
from fwdaemon.legacy.model import Table, TableName
from fwdaemon.model import Family

_PROGRAMS = {Family.IPV4: "iptables-legacy-restore", Family.IPV6: "ip6tables-legacy-restore"}


def restore_text(family: Family, tables: Mapping[TableName, Table]) -> str:
    """Write the tables of one family."""
    lines = [f"# {_PROGRAMS[family]} --noflush"]
    for name, table in tables.items():
        lines += [f"*{name}", *_lines(table), "COMMIT"]
    return "".join(f"{line}\n" for line in lines)


def change_text(family: Family, table: TableName, change: Change) -> str:
    """Write the edits of one table; positions count from 1, each rule's as it is when its line's turn comes."""
    lines = [f"# {_PROGRAMS[family]} --noflush", f"*{table}", *(f":{chain} - [0:0]" for chain in change.create)]
    for edit in change.edits:
        lines += [f"-D {edit.chain} {position + 1}" for position in sorted(edit.delete, reverse=True)]
        lines += [f"-I {edit.chain} {position + 1} {rule}" for position, rule in edit.insert]
    for chain in change.drop:
        lines += [f"-F {chain}", f"-X {chain}"]
    return "".join(f"{line}\n" for line in [*lines, "COMMIT"])


def _lines(table: Table) -> Iterator[str]:
    yield from (f":{chain} - [0:0]" for chain in table.chains)
    yield from (f"-I {chain} 1 {rule}" for chain, rule in table.heads.items())
    for chain, rules in table.chains.items():
        yield from (f"-A {chain} {rule}" for rule in rules)
