"""Our rules as text for people, in the form `iptables-legacy-restore --noflush` takes."""

from collections.abc import Iterator, Mapping

from fwdaemon.legacy.model import Table, TableName
from fwdaemon.model import Family

_PROGRAMS = {Family.IPV4: "iptables-legacy-restore", Family.IPV6: "ip6tables-legacy-restore"}


def restore_text(family: Family, tables: Mapping[TableName, Table]) -> str:
    """Write the tables of one family."""
    lines = [f"# {_PROGRAMS[family]} --noflush"]
    for name, table in tables.items():
        lines += [f"*{name}", *_lines(table), "COMMIT"]
    return "".join(f"{line}\n" for line in lines)


def _lines(table: Table) -> Iterator[str]:
    yield from (f":{chain} - [0:0]" for chain in table.chains)
    yield from (f"-I {chain} 1 {rule}" for chain, rule in table.heads.items())
    for chain, rules in table.chains.items():
        yield from (f"-A {chain} {rule}" for rule in rules)
