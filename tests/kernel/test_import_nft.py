"""Imported nft texts against the real nft: it takes each sample, and what it lists is judged like what was written.

What an imported forward takes is asked of the rules as the kernel has them, packet by packet.
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from ipaddress import ip_address

import pytest

from fwdaemon.core.types import Address, Family, Protocol
from fwdaemon.importing.adopting import uncovered
from fwdaemon.importing.findings import Findings, Forward
from fwdaemon.kernel.process import SystemRunner
from fwdaemon.rulesets.evaluation import Judgement, pass_through
from fwdaemon.rulesets.nft_listing import base_chains, rule_texts
from fwdaemon.rulesets.packet import BaseChain, Packet, Surroundings
from tests.unit.nft_samples import SAMPLES, Sample
from tests.unit.test_import_nft import found, live, nats

SOURCES4 = ("203.0.113.7", "203.0.113.8", "203.0.113.200", "198.51.100.64", "192.0.2.7", "192.0.2.200", "9.9.9.9")
SOURCES6 = ("2001:db8:9::9",)
WANTED4 = ("198.51.100.1", "198.51.100.8", "198.51.100.3")
WANTED6 = ("2001:db8::1",)
DEVICES = ("eth0", "eth1", "virbr0")
PROTOCOLS = (Protocol.TCP, Protocol.UDP)
DNAT = -100


def nft(runner: SystemRunner, *words: str, stdin: str = "") -> str:
    return runner.run("nft", *words, stdin=stdin).stdout


@pytest.fixture(params=SAMPLES, ids=lambda sample: sample.name)
def sample(request: pytest.FixtureRequest) -> Sample:
    chosen: Sample = request.param
    return chosen


def test_what_the_real_nft_lists_is_imported_like_what_was_written(runner: SystemRunner, sample: Sample) -> None:
    nft(runner, "-f", "-", stdin=sample.text)
    written, listed = found(sample.text), found(nft(runner, "list", "ruleset"))
    assert live(listed) == live(written) == list(sample.live)
    assert nats(listed) == nats(written) == list(sample.nats)


def test_nothing_is_imported_that_the_kernel_would_not_have_let_in(runner: SystemRunner, sample: Sample) -> None:
    nft(runner, "-f", "-", stdin=sample.text)
    chains = base_chains(nft(runner, "-j", "list", "ruleset"), rule_texts(nft(runner, "-a", "list", "ruleset")))
    forwards = in_force(found(sample.text))
    asked = 0
    for packet in packets(sample.text):
        now = taken(forwards, packet)
        if now is not None or sample.is_open:
            assert now == old(chains, packet), packet
        asked += now is not None
    assert asked or not sample.live


def in_force(findings: Findings) -> list[Forward]:
    """The forwards that are live in the end: not those that would take what one that is left out took before."""
    live = [forward for forward in findings.forwards if not forward.reason]
    while gone := {forward for forward, _ in uncovered(live)}:
        live = [forward for forward in live if forward not in gone]
    return live


def packets(text: str) -> Iterator[Packet]:
    """Connections of all kinds that a rule set may tell apart: each port that it names, and those beside them."""
    named = {int(number) for number in re.findall(r"\b\d{2,5}\b", text)} | {80, 443}
    ports = sorted({port + by for port in named for by in (-1, 0, 1) if 1 <= port + by < 65536})
    for sources, wanted in ((SOURCES4, WANTED4), (SOURCES6, WANTED6)):
        for source, to, device, protocol, port in itertools.product(
            map(ip_address, sources),
            map(ip_address, wanted),
            ("eth0", "eth1", "virbr0"),
            (Protocol.TCP, Protocol.UDP),
            ports,
        ):
            family = Family.of(to)
            yield Packet(family, protocol, source, to, port, (to, port), source_port=40000, came_in=device)


def old(chains: Sequence[BaseChain], packet: Packet) -> tuple[Address, int] | None:
    """Where the rules of the kernel send a packet for certain; `None` if they keep it, or may."""
    assert packet.destination is not None
    around = Surroundings({packet.destination: frozenset({"eth0"})})
    own = ("inet", "ip" if packet.family is Family.IPV4 else "ip6")
    # The kernel does not call the chains of a dormant table, which the listing shows all the same.
    known = sorted(
        (chain for chain in chains if chain.family in own and chain.table != "dormant"),
        key=lambda chain: chain.priority,
    )
    pre = [chain for chain in known if chain.hook == "prerouting"]
    way = [
        *(chain for chain in pre if chain.kind != "nat" and chain.priority <= DNAT),
        *(chain for chain in pre if chain.kind == "nat"),
        *(chain for chain in pre if chain.kind != "nat" and chain.priority > DNAT),
        *(chain for chain in known if chain.hook == "forward"),
    ]
    for chain in way:
        if chain.kind == "nat" and packet.translated_by is not None:
            continue
        if chain.hook == "forward" and packet.translated_by is None:
            return None
        passage = pass_through(chain, {replace(packet, goes_out="virbr0" if chain.hook == "forward" else "")}, around)
        if passage.judgement is not Judgement.ACCEPTS or len(passage.packets) != 1:
            return None
        (packet,) = passage.packets
    if packet.translated_by is None or packet.destination is None or packet.port is None:
        return None
    # `dnat ip6 to` is for IPv6 only, which nft adds unseen.
    return (packet.destination, packet.port) if Family.of(packet.destination) is packet.family else None


def taken(forwards: Sequence[Forward], packet: Packet) -> tuple[Address, int] | None:
    """Where the imported forwards send a packet; one on an address goes before one on every address."""
    for forward in sorted(forwards, key=lambda forward: forward.listen is None):
        assert packet.port is not None
        if (
            forward.protocol is packet.protocol
            and packet.port in forward.host
            and Family.of(forward.address) is packet.family
            and forward.listen in {None, packet.destination}
            and forward.interface in {None, packet.came_in}
            and (not forward.sources or any(packet.source in subnet for subnet in forward.sources))
        ):
            return forward.address, forward.guest.first + packet.port - forward.host.first
    return None
