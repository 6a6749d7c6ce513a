"""Forwards as hook scripts make them: four linear iptables rules each. Pure.

A libvirt hook runs `iptables` once for each rule: DNAT for packets from outside, DNAT for those of the host itself,
masquerade for a guest that reaches itself through the public address, and an accept ahead of libvirt's refusal.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_CHAINS = {("nat", "PREROUTING"): "HOOK_PRE", ("nat", "OUTPUT"): "HOOK_OUT", ("nat", "POSTROUTING"): "HOOK_POST"}
_FORWARD = ("filter", "FORWARD"), "HOOK_FWD"


@dataclass(frozen=True, slots=True)
class HookForward:
    """One TCP port of a public address that leads to a port of a guest."""

    public: str
    port: int
    guest: str
    guest_port: int

    def rules(self) -> Iterator[tuple[str, str]]:
        """Each rule's table, and the rule as iptables(8) takes it."""
        at_host = f"-p tcp -d {self.public} --dport {self.port} -j DNAT --to-destination {self.guest}:{self.guest_port}"
        at_guest = f"-d {self.guest} -p tcp --dport {self.guest_port}"
        yield "nat", f"-A HOOK_PRE {at_host}"
        yield "nat", f"-A HOOK_OUT {at_host}"
        yield "nat", f"-A HOOK_POST -s {self.guest} {at_guest} -j MASQUERADE"
        yield "filter", f"-A HOOK_FWD {at_guest} -j ACCEPT"


def chains() -> str:
    """Make the chains, and link each from the head of its chain of the kernel's; for `iptables-restore --noflush`."""
    return _tables(_links("-I {kernel} 1 -j {own}"))


def no_chains() -> str:
    """Take them away again, with all that is in them."""
    return _tables(_links("-D {kernel} -j {own}\n-F {own}\n-X {own}"))


def _links(form: str) -> Iterator[tuple[str, str]]:
    for (table, kernel), own in [*_CHAINS.items(), _FORWARD]:
        yield table, f":{own} - [0:0]\n{form.format(kernel=kernel, own=own)}"


def restore_text(forwards: Iterable[HookForward]) -> str:
    """Every rule at once, once the chains are there; for `iptables-restore --noflush`."""
    return _tables(rule for forward in forwards for rule in forward.rules())


def commands(program: str, forwards: Iterable[HookForward]) -> list[list[str]]:
    """Every rule as a process of its own."""
    return [[program, "-t", table, *rule.split()] for forward in forwards for table, rule in forward.rules()]


def _tables(lines: Iterable[tuple[str, str]]) -> str:
    tables: dict[str, list[str]] = {}
    for table, line in lines:
        tables.setdefault(table, []).append(line)
    return "".join(f"*{table}\n" + "\n".join(rules) + "\nCOMMIT\n" for table, rules in tables.items())
