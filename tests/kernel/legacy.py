"""What the tests of the legacy tables share: the tables as text, and changes by iptables' own program."""

import os
import threading
from pathlib import Path

from fwdaemon.legacy.client import HelperClient
from fwdaemon.legacy.difference import Change
from fwdaemon.legacy.model import TableName
from fwdaemon.model import Family
from tests.lab.command import run
from tests.lab.rules import foreign_rules, own_rules


def helpers() -> list[int]:
    children = Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text(encoding="ascii").split()
    return [int(pid) for pid in children if b"fwdaemon.legacy.helper" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def iptables(*arguments: str, family: Family = Family.IPV4) -> None:
    program = "iptables-legacy" if family is Family.IPV4 else "ip6tables-legacy"
    run([program, "-w", *arguments], env=dict(os.environ))


def saved() -> str:
    return "".join(run([f"{program}-legacy-save"]).stdout for program in ("iptables", "ip6tables"))


def foreign() -> str:
    return foreign_rules("", saved())


def own() -> str:
    return own_rules("", saved())


def commit(client: HelperClient, change: Change) -> None:
    with client.locked() as session:
        session.observe({TableName.FILTER: {}})
        session.commit(TableName.FILTER, change)
