"""Whatever rules of iptables say, what is imported lets in nothing that they did not, and leads it nowhere else.

The old rules are followed by `fwdaemon.explain`, which knows nothing of the import: packet by packet, and what it
cannot tell counts as refused.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from ipaddress import IPv4Address, ip_address, ip_network
from itertools import product
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from fwdaemon import config
from fwdaemon.config.model import Config, ForwardEntry
from fwdaemon.core.types import Address, Family, Protocol
from fwdaemon.importing.assembling import Owners, assemble
from fwdaemon.importing.iptables_save import parse
from fwdaemon.rulesets.evaluation import Judgement, Way, through
from fwdaemon.rulesets.packet import BaseChain, Packet, Surroundings, System
from fwdaemon.rulesets.xt_listing import base_chains
from tests.unit.imports import FILE

HERE = [IPv4Address("203.0.113.1"), IPv4Address("203.0.113.2")]
GUESTS = [IPv4Address("192.168.122.10"), IPv4Address("192.168.122.11")]
CLIENTS = [*map(ip_address, ("198.51.100.5", "198.51.101.5", "192.168.122.77", "9.9.9.9"))]
PORTS = (21, 22, 23, 79, 80, 81)
DEVICES = ("eth0", "eth1", "virbr0", "wlan0")
SURROUNDINGS = Surroundings(dict.fromkeys(HERE, frozenset({"eth0"})))
OWNERS: Owners = {address: (f"guest{address}",) for address in GUESTS}

NOT = st.sampled_from(["", "", "! "])
SOURCE = st.builds("{}-s {}".format, NOT, st.sampled_from(["198.51.100.0/24", "198.51.100.0/23", "192.168.122.0/24"]))
DEVICE = st.builds("{}-i {}".format, NOT, st.sampled_from(["eth0", "eth+", "virbr0", "eth1"]))
PORT = st.builds("-p tcp -m tcp {}--dport {}".format, NOT, st.sampled_from(["22", "80", "21:23", "22:80", ":79"]))
SEVERAL = st.just("-p tcp -m multiport --dports 22,80:81")
STATE = st.builds("-m conntrack {}--ctstate {}".format, NOT, st.sampled_from(["NEW", "RELATED,ESTABLISHED", "DNAT"]))
UNKNOWN = st.just("-m set --match-set listed src")
KIND = st.builds("-m addrtype {}--dst-type {}".format, NOT, st.sampled_from(["LOCAL", "UNICAST"]))
BEFORE = st.builds("{}-d {}".format, NOT, st.sampled_from(["203.0.113.1/32", "203.0.113.0/24", "203.0.113.2/32"]))
AFTER = st.builds("{}-d {}".format, NOT, st.sampled_from(["192.168.122.10/32", "192.168.122.0/24"])) | st.builds(
    "{}-o {}".format, NOT, st.sampled_from(["virbr0", "eth0"])
)
SENT = st.builds("-m conntrack {}--ctorigdst {}".format, NOT, st.just("203.0.113.1/32")) | st.builds(
    "-m conntrack --ctorigdstport {}".format, st.sampled_from(["22", "80"])
)
TO = st.builds(
    "-j DNAT --to-destination {}{}".format,
    st.sampled_from(GUESTS),
    st.sampled_from(["", "", ":80", ":22", ":80-90/21"]),
)
TO_SENT = st.builds("-A PREROUTING {} {} {}".format, st.just("-p tcp") | PORT, SENT, TO)
LEAVING = st.sampled_from(["", "", "-o eth0", "! -o virbr0", "-p tcp", "-d 9.9.9.9/32", "! -d 9.9.9.9/32", "-o virbr0"])
RENAMES = st.sampled_from(["-j SNAT --to-source 203.0.113.1"] * 4 + ["-j MASQUERADE", "-j ACCEPT"])
FEW = st.integers(1, 3)
BOTH = (Protocol.TCP, Protocol.UDP)
# By these, which are not the guests' bridge, what they send may leave.
OUT = tuple(device for device in DEVICES if device != "virbr0")
NAT_ENDS = st.sampled_from(["-j ACCEPT", "-j RETURN", "-j REDIRECT --to-ports 22", "-j LOG", "-j RETURN", "-j MYSTERY"])
FILTER_ENDS = st.sampled_from(["-j ACCEPT", "-j ACCEPT", "-j DROP", "-j REJECT", "-j RETURN", "-j LOG", "-j MYSTERY"])

_SSH = "-p tcp -m tcp --dport 22"


def matches(*more: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Some matches, none of them twice, and mostly with a port."""
    one_of_each = [SOURCE, DEVICE, PORT | PORT | SEVERAL, STATE | STATE | KIND | UNKNOWN, *more]
    wanted = st.lists(st.sampled_from(range(len(one_of_each))), unique=True, max_size=2).map(sorted)
    return wanted.flatmap(lambda numbers: st.tuples(*(one_of_each[number] for number in numbers)).map(" ".join))


def rules(
    chain: str, below: Sequence[str], asked: st.SearchStrategy[str], ends: st.SearchStrategy[str]
) -> st.SearchStrategy[list[str]]:
    """Rules of a chain, which may go on to those below it."""
    jumps = st.builds("-{} {}".format, st.sampled_from("jjg"), st.sampled_from(below)) if below else ends
    return st.lists(st.builds(f"-A {chain} {{}} {{}}".format, asked, ends | jumps), max_size=4)


@st.composite
def saves(draw: st.DrawFn) -> str:
    """What `iptables-save` could print."""
    nat, after, port = matches(BEFORE, SENT), matches(AFTER, SENT), st.just("-p tcp -m tcp --dport 22:80")
    ends = TO | TO | NAT_ENDS
    sent = draw(rules("B", [], nat | port, ends)), draw(rules("A", "B", nat, ends))
    came = draw(rules("PREROUTING", "AB", nat | PORT, ends))
    let = draw(rules("V", [], after, FILTER_ENDS)), draw(rules("U", "V", after, FILTER_ENDS))
    passed, policy = draw(rules("FORWARD", "UV", after, FILTER_ENDS)), draw(st.sampled_from(["ACCEPT", "DROP"]))
    mangled = draw(rules("PREROUTING", [], nat, st.sampled_from(["-j ACCEPT", "-j DROP"])))[3:]
    mangled += draw(rules("POSTROUTING", [], after, st.sampled_from(["-j ACCEPT", "-j DROP"])))[1:]
    came += [draw(TO_SENT | st.just(f"-A PREROUTING {_SSH} -j DNAT --to-destination 192.168.122.10"))]
    passed += draw(st.sampled_from([[], ["-A FORWARD -d 192.168.122.10/32 -j ACCEPT"]]))
    lines = ["*mangle", ":PREROUTING ACCEPT [0:0]", *mangled, "COMMIT"]
    lines += ["*nat", ":PREROUTING ACCEPT [0:0]", ":A - [0:0]", ":B - [0:0]", *came, *sent[0], *sent[1], "COMMIT"]
    lines += ["*filter", f":FORWARD {policy} [0:0]", ":U - [0:0]", ":V - [0:0]", *passed, *let[0], *let[1], "COMMIT"]
    return "\n".join(lines) + "\n"


@st.composite
def pairs(draw: st.DrawFn) -> str:
    """What `iptables-save` could print where an address maps one-to-one to a guest, or nearly so."""
    asked = st.just("") | SENT | SOURCE | DEVICE | PORT | KIND
    came = draw(rules("PREROUTING", [], matches(BEFORE, SENT), TO | NAT_ENDS))[3:]
    came += [f"-A PREROUTING -d 203.0.113.1/32 {draw(asked)} -j DNAT --to-destination 192.168.122.10"]
    left = [f"-A POSTROUTING -s 192.168.122.10/32 {draw(LEAVING)} {draw(RENAMES)}" for _ in range(draw(FEW))]
    left += draw(st.sampled_from([["-A POSTROUTING -s 192.168.122.0/24 ! -d 192.168.122.0/24 -j MASQUERADE"], []]))
    passed = draw(rules("FORWARD", [], matches(AFTER, SENT), st.sampled_from(["-j ACCEPT", "-j DROP"])))[3:]
    lines = ["*nat", ":PREROUTING ACCEPT [0:0]", *came, ":POSTROUTING ACCEPT [0:0]", *left, "COMMIT"]
    lines += ["*filter", ":FORWARD ACCEPT [0:0]", *passed, "COMMIT"]
    return "\n".join(lines) + "\n"


@lru_cache(1)
def chains_of(save: str) -> list[BaseChain]:
    """Read a save once, and not for each packet."""
    return base_chains(save, System.LEGACY, Family.IPV4)


def imported(save: str, owners: Owners = OWNERS) -> Config:
    text = assemble([parse(FILE, save, way_out=lambda _: "virbr0")], owners).text
    return config.parse({Path("made.toml"): text})


@dataclass(frozen=True, slots=True)
class Client:
    """Who connects, and to what."""

    source: Address
    here: Address
    port: int
    device: str
    protocol: Protocol = Protocol.TCP

    def packet(self) -> Packet:
        ends = self.source, self.here, self.port, (self.here, self.port)
        return Packet(Family.IPV4, self.protocol, *ends, came_in=self.device)


def clients(protocols: Sequence[Protocol] = (Protocol.TCP,)) -> Iterator[Client]:
    yield from (Client(*each) for each in product(CLIENTS, HERE, PORTS, DEVICES, protocols))


def where_we_lead(made: Config, client: Client) -> tuple[Address | None, int] | None:
    """Where we lead a client: a forward on one address first, then one on every address, and a whole address last."""
    for listen in ((client.here,), ()):
        for entry in made.forwards:
            if entry.listen == listen and _takes(entry, client):
                for mapping in entry.mappings:
                    if mapping.protocol is client.protocol and client.port in mapping.host:
                        return entry.address, mapping.guest.first + client.port - mapping.host.first
    return next(((nat.address, client.port) for nat in made.nats if nat.public == client.here), None)


def _takes(entry: ForwardEntry, client: Client) -> bool:
    from_here = not entry.sources or any(client.source in source for source in entry.sources)
    return from_here and entry.interface in {None, client.device}


def where_they_led(save: str, client: Client) -> set[tuple[Address | None, int | None] | None]:
    """Everywhere the old rules may have led a client; `None` is nowhere."""
    chains = chains_of(save)
    came = through(chains, "prerouting", [client.packet()], SURROUNDINGS)
    delivered = {replace(packet, goes_out="virbr0") for packet in came.packets}
    passed = through(chains, "forward", delivered, SURROUNDINGS)
    posted = through(chains, "postrouting", delivered, SURROUNDINGS)
    refused = {None for way in (came, passed, posted) if not _lets_all_through(way)}
    return refused | {(packet.destination, packet.port) for packet in came.packets}


def _lets_all_through(way: Way) -> bool:
    return all(passage.judgement is Judgement.ACCEPTS for passage in way.passages)


def stays_unnamed(save: str, guest: Address) -> bool:
    """Whether by any way out something a guest sends may leave under its own address."""
    chains = chains_of(save)
    sent = [
        Packet(Family.IPV4, protocol, guest, to, port, (to, port), came_in="virbr0")
        for to, port, protocol in product((CLIENTS[0], CLIENTS[3]), PORTS, BOTH)
    ]
    ways = (through(chains, "postrouting", {replace(one, goes_out=by) for one in sent}, SURROUNDINGS) for by in OUT)
    return all(not _lets_all_through(way) or any(not one.renamed for one in way.packets) for way in ways)


def too_much(save: str, made: Config, protocols: Sequence[Protocol] = (Protocol.TCP,)) -> list[Client]:
    """The clients that we let in where the old rules did not, or may not have."""
    led = ((client, where_we_lead(made, client)) for client in clients(protocols))
    return [client for client, to in led if to is not None and where_they_led(save, client) != {to}]


@given(saves())
def test_nothing_is_let_in_that_was_not(save: str) -> None:
    assert too_much(save, imported(save)) == []


@given(saves(), st.sampled_from(GUESTS))
def test_nothing_is_let_in_that_was_not_where_a_guest_is_not_known(save: str, known: Address) -> None:
    assert too_much(save, imported(save, {known: OWNERS[known]})) == []


@given(pairs())
def test_no_address_is_a_guest_that_was_not_in_and_out(save: str) -> None:
    made = imported(save)
    assert too_much(save, made, BOTH) == []
    assert not [nat for nat in made.nats if nat.address is None or stays_unnamed(save, nat.address)]


def test_what_opens_more_is_seen() -> None:
    """The oracle has teeth: the rules as they are, taken without those that stop some of it."""
    to_guest = f"-A PREROUTING {_SSH} -j DNAT --to-destination 192.168.122.10"
    open_to_all = f"*nat\n:PREROUTING ACCEPT [0:0]\n{to_guest}\nCOMMIT\n"
    refused = "*filter\n:FORWARD DROP [0:0]\n-A FORWARD -s 198.51.100.0/24 -j ACCEPT\nCOMMIT\n"
    made = imported(f"{open_to_all}*filter\n:FORWARD ACCEPT [0:0]\nCOMMIT\n")
    assert {client.source for client in too_much(open_to_all + refused, made)} == set(CLIENTS[1:])
    assert ip_network("198.51.100.0/24") in imported(open_to_all + refused).forwards[0].sources
