"""What tests of rules that `iptables-save` printed share: such a text, and what is found in it."""

from collections.abc import Sequence

from fwdaemon.importing.findings import Findings
from fwdaemon.importing.iptables_save import parse
from tests.unit.imports import FILE

SQL = "-A PREROUTING -d 203.0.113.1/32 -p tcp -m tcp --dport 5432 -j DNAT --to-destination 10.0.0.9"
SSH = "-A PREROUTING -d 203.0.113.1/32 -p tcp -m tcp --dport 22 -j DNAT --to-destination 10.0.0.9"
SQL_IS = "? 203.0.113.1:5432/tcp -> 10.0.0.9:5432"
SSH_IS = "? 203.0.113.1:22/tcp -> 10.0.0.9:22"
EVERYWHERE = "-A PREROUTING -p tcp --dport 22 -j DNAT --to-destination 192.168.122.10"


def chains(rules: Sequence[str]) -> list[str]:
    """The lines that declare the chains of these rules, one for each."""
    names = dict.fromkeys(rule.split()[1] for rule in rules)
    return [f":{name} - [0:0]" for name in names if name not in {"PREROUTING", "FORWARD", "OUTPUT", "POSTROUTING"}]


def saved(nat: Sequence[str], filtered: Sequence[str] = (), policy: str = "ACCEPT", more: Sequence[str] = ()) -> str:
    """What `iptables-save` prints; the rules of nat begin on line 3, if none of them has a chain of its own."""
    lines = ["*nat", ":PREROUTING ACCEPT [0:0]", *nat, *chains(nat), "COMMIT"]
    lines += ["*filter", f":FORWARD {policy} [0:0]", *filtered, *chains(filtered), "COMMIT", *more]
    return "\n".join(lines) + "\n"


def found(nat: Sequence[str], filtered: Sequence[str] = (), policy: str = "ACCEPT") -> Findings:
    return parse(FILE, saved(nat, filtered, policy), way_out=lambda _: "virbr0")
