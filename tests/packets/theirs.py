"""The rules of others on the host: libvirt's for two networks, an administrator's refusals, and a tool that marks."""

from collections.abc import Iterable, Iterator
from typing import Final

from fwdaemon.core.admission import Element
from fwdaemon.core.types import Family, Gate
from tests.kernel.topology import Node
from tests.packets.plan import BANNED, NAT_NETWORKS, NETWORKS
from tests.packets.promise import Place, Refusal

GATE: Final = Gate("inet", "theirs", "forward")
# What has one of these source ports is marked by others: with all bits in the connection, and with our label's bit.
MARKED: Final = (30000, 39999)
_MARK: Final = 1 << 25

_NATIVE: Final = """
table inet theirs {{
    chain marks {{
        type filter hook prerouting priority mangle;
        th sport {first}-{last} meta mark set {mark} ct mark set 0xffffffff
    }}
    chain forward {{
        type filter hook forward priority filter; policy accept;
        {refusals}
        {libvirts}
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat;
        {masquerades}
    }}
}}
"""
_NATIVE_LIBVIRTS: Final = """
        ct state established,related accept
        iifname virbr0 oifname virbr0 accept
        iifname virbr1 oifname virbr1 accept
        oifname {{ virbr0, virbr1 }} reject
        {lets}
        iifname {{ virbr0, virbr1 }} reject
"""
_SAVED: Final = """
*mangle
{marks}
COMMIT
*filter
{refusals}
{libvirts}
COMMIT
*nat
{masquerades}
COMMIT
"""
_SAVED_LIBVIRTS: Final = """
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -i virbr0 -o virbr0 -j ACCEPT
-A FORWARD -i virbr1 -o virbr1 -j ACCEPT
-A FORWARD -o virbr0 -j REJECT
-A FORWARD -o virbr1 -j REJECT
{lets}
-A FORWARD -i virbr0 -j REJECT
-A FORWARD -i virbr1 -j REJECT
"""


def load(host: Node, place: Place, *, legacy: bool) -> None:
    """Have nothing on the host but these, and no connection."""
    host.run("nft", "-f", "-", stdin="flush ruleset" + ("" if legacy else _native(place)))
    for family in Family:
        program = "iptables-legacy-restore" if family is Family.IPV4 else "ip6tables-legacy-restore"
        host.run(program, stdin=_saved(family, place) if legacy else "*mangle\nCOMMIT\n*filter\nCOMMIT\n*nat\nCOMMIT\n")
    host.run("conntrack", "--flush")


def refuse(host: Node, refusals: Iterable[Refusal], *, legacy: bool) -> None:
    """Have the administrator refuse more, at the head of all."""
    for refusal in refusals:
        if not legacy:
            host.run("nft", f"insert rule {GATE} {_refused(refusal)}")
            continue
        for family in Family:
            program = "iptables-legacy" if family is Family.IPV4 else "ip6tables-legacy"
            for line in _refused_lines(family, refusal):
                host.run(program, *line.replace("-A", "-I").split())


def ban(host: Node, *, legacy: bool) -> None:
    """Have another program put into our external set what it bans."""
    if legacy:
        for subnet in BANNED:
            host.run("ipset", "-exist", "add", f"KVMPF_banned_{subnet.version}", str(subnet))
        return
    for family in Family:
        held = ", ".join(str(subnet) for subnet in BANNED if subnet.version == family)
        host.run("nft", f"add element {family.word} kvm_portfwd set_banned {{ {held} }}")


def banned(family: Family) -> list[Element]:
    """Give what it bans, as ranges."""
    held = [subnet for subnet in BANNED if subnet.version == family]
    return [Element(int(subnet.network_address), int(subnet.broadcast_address)) for subnet in held]


def _native(place: Place) -> str:
    networks = [(f"ip{'6' if s.version == 6 else ''}", s, bridge) for s, bridge in NETWORKS.items()]
    lets = "\n        ".join(f"iifname {bridge} {ip} saddr {s} accept" for ip, s, bridge in networks)
    return _NATIVE.format(
        first=MARKED[0],
        last=MARKED[1],
        mark=_MARK,
        refusals="\n        ".join(map(_refused, place.refusals)),
        libvirts="" if place.flushed else _NATIVE_LIBVIRTS.format(lets=lets),
        masquerades="\n        ".join(
            f"{ip} saddr {s} {ip} daddr != {s} masquerade" for ip, s, _ in networks if s in NAT_NETWORKS
        ),
    )


def _refused(refusal: Refusal) -> str:
    parts = [] if refusal.came_in is None else [f"iifname {refusal.came_in}"]
    if refusal.sources is not None:
        parts.append(f"ip{'6' if refusal.sources.version == 6 else ''} saddr {refusal.sources}")
    return " ".join([*parts, f"meta l4proto {{ tcp, udp }} th dport {refusal.port} drop"])


def _saved(family: Family, place: Place) -> str:
    networks = [(s, bridge) for s, bridge in NETWORKS.items() if s.version == family]
    lets = "\n".join(f"-A FORWARD -s {s} -i {bridge} -j ACCEPT" for s, bridge in networks)
    return _SAVED.format(
        marks="\n".join(_marks()),
        refusals="\n".join(line for refusal in place.refusals for line in _refused_lines(family, refusal)),
        libvirts="" if place.flushed else _SAVED_LIBVIRTS.format(lets=lets),
        masquerades="\n".join(
            f"-A POSTROUTING -s {s} ! -d {s} -j MASQUERADE" for s, _ in networks if s in NAT_NETWORKS
        ),
    )


def _marks() -> Iterator[str]:
    for protocol in ("tcp", "udp"):
        for target in (f"MARK --set-mark {_MARK}", "CONNMARK --set-mark 0xffffffff"):
            yield f"-A PREROUTING -p {protocol} -m {protocol} --sport {MARKED[0]}:{MARKED[1]} -j {target}"


def _refused_lines(family: Family, refusal: Refusal) -> Iterator[str]:
    if refusal.sources is not None and refusal.sources.version != family:
        return
    where = f"-s {refusal.sources} " if refusal.sources is not None else ""
    where += f"-i {refusal.came_in} " if refusal.came_in is not None else ""
    for protocol in ("tcp", "udp"):
        yield f"-A FORWARD {where}-p {protocol} -m {protocol} --dport {refusal.port} -j DROP"
