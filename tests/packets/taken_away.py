"""Takes a guard out of our rules in the kernel, so that a test can see whether the packets would show that."""

from collections.abc import Callable, Iterable, Mapping
from typing import Final, TypeAlias

from fwdaemon.core.types import Family
from tests.kernel.topology import Node
from tests.packets.plan import BRIDGES, GUESTS, HELD, LINK, LINKS, UPLINK

# Called with the host once our rules are there, and with whether these are in iptables-legacy.
Theft: TypeAlias = Callable[[Node, bool], None]


def _homes(host: Node, legacy: bool) -> None:  # noqa: FBT001  as every theft
    """Have addresses of guests be believed wherever they come in."""
    if legacy:
        _rewrite(host, lambda line: line.startswith("-A KVMPF_PRE") and " ! -i " in line)
    else:
        _flush(host, "map", "homes")


def _links(host: Node, legacy: bool) -> None:  # noqa: FBT001  as every theft
    """Have addresses on links of the host be believed wherever they come in."""
    if legacy:
        _rewrite(
            host, lambda line: line.startswith("-A KVMPF_PRE") and line.endswith("-j RETURN") and _is_on_link(line)
        )
        return
    for table in _our_tables(host):
        for subnet in (subnet for subnet, link in LINKS.items() if link not in BRIDGES):
            if table == Family.of(subnet).word:
                host.run("nft", f"flush chain {table} kvm_portfwd home.{str(subnet).replace(':', '_')}")


def _is_on_link(line: str) -> bool:
    return any(f" -s {subnet} " in line for subnet, link in LINKS.items() if link not in BRIDGES)


def _impostors(host: Node, legacy: bool) -> None:  # noqa: FBT001  as every theft
    """Have others send with the address of a 1:1 guest."""
    if legacy:
        _rewrite(host, lambda line: line.startswith("-A KVMPF_FWD -s ") and line.endswith("-j DROP"))
    else:
        _flush(host, "map", "one_to_one_leaving")


def _strangers(host: Node, legacy: bool) -> None:  # noqa: FBT001  as every theft
    """Have the host forward everything once forwarding is turned on."""
    if legacy:
        _rewrite(host, lambda line: line.startswith("-A KVMPF_FWD") and "confined" in line and line.endswith("-j DROP"))
    else:
        _flush(host, "chain", "strangers")


def _ended(host: Node, legacy: bool) -> None:  # noqa: FBT001  as every theft
    """Have what was ended begin anew from the guest's side."""
    if legacy:
        _rewrite(host, lambda line: line.startswith("-A KVMPF_FWD") and " -j REJECT " in line)
    else:
        _flush(host, "set", "ended")


def _late_label(host: Node, legacy: bool) -> None:  # noqa: FBT001  as every theft
    """Label what guests open before the filters, so that gates outrank refusals."""
    for address in (address for guest in (*GUESTS, "routed") for address in HELD[guest]):
        family = Family.of(address)
        if legacy:
            program = "iptables-legacy" if family is Family.IPV4 else "ip6tables-legacy"
            rule = f"-t mangle -I FORWARD -s {address} -o {UPLINK} -m connlabel --label 25 --set"
            host.run(program, *rule.split())
        elif (table := f"ip{'6' if family is Family.IPV6 else ''}") in _our_tables(host):
            rule = f'insert rule {table} kvm_portfwd forward {table} saddr {address} oifname "{UPLINK}" ct label set 25'
            host.run("nft", rule)


def _no_label(host: Node, legacy: bool) -> None:  # noqa: FBT001  as every theft
    """Label what guests open once it has passed the filters, so that gates outrank what is refused later."""
    for address in (address for guest in (*GUESTS, "routed") for address in HELD[guest]):
        family = Family.of(address)
        if legacy:
            program = "iptables-legacy" if family is Family.IPV4 else "ip6tables-legacy"
            rule = f"-t nat -I POSTROUTING -s {address} -o {UPLINK} -m connlabel --label 25 --set"
            host.run(program, *rule.split())
        elif family.word in _our_tables(host):
            match = f'{family.word} saddr {address} oifname "{UPLINK}"'
            host.run("nft", f"insert rule {family.word} kvm_portfwd postrouting {match} ct label set 25")


def _uplinks(host: Node, legacy: bool) -> None:  # noqa: FBT001  as every theft
    """Have an inner network be a way out too."""
    if legacy:
        _write(host, lambda line: (line, line.replace(f" -o {UPLINK} ", f" -o {LINK['lan']} ")))
        return
    for table in _our_tables(host):
        host.run("nft", f'add element {table} kvm_portfwd uplinks {{ "{LINK["lan"]}" }}')


THEFTS: Final[Mapping[str, Theft]] = {
    "strangers": _strangers,
    "homes": _homes,
    "links": _links,
    "impostors": _impostors,
    "late label": _late_label,
    "no label": _no_label,
    "ended": _ended,
    "uplinks": _uplinks,
}


def _our_tables(host: Node) -> list[str]:
    listed = host.run("nft", "list", "tables").splitlines()
    return [line.split()[1] for line in listed if line.split()[2] == "kvm_portfwd"]


def _flush(host: Node, kind: str, name: str) -> None:
    for table in _our_tables(host):
        if f"\t{kind} {name} {{" in host.run("nft", "list", "table", table, "kvm_portfwd"):
            host.run("nft", "flush", kind, table, "kvm_portfwd", name)


def _rewrite(host: Node, is_guard: Callable[[str], bool]) -> None:
    _write(host, lambda line: () if is_guard(line) else (line,))


def _write(host: Node, written: Callable[[str], Iterable[str]]) -> None:
    """Have others written in place of each line, each of them once."""
    for prefix in ("iptables", "ip6tables"):
        lines = host.run(f"{prefix}-legacy-save").splitlines()
        kept = [other for line in lines for other in dict.fromkeys(written(line))]
        host.run(f"{prefix}-legacy-restore", stdin="\n".join([*kept, ""]))
