"""Probes with real packets: those that a change concerns, others drawn by lot, and some that no one may answer."""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from tests.chaos.admission import BANNABLE
from tests.chaos.model import ASKED, ENTRIES, REFUSED, STEADY, TEMPORARY, World
from tests.chaos.server import TCP_PORT, UDP_PORT
from tests.chaos.stage import Stage
from tests.chaos.truth import answering
from tests.lab.host import (
    CLIENT4,
    CLIENT4_OTHER_LINK,
    CLIENT6,
    OTHER_LINK4,
    PUBLIC4,
    PUBLIC4_SECOND,
    PUBLIC6,
)
from tests.lab.probe import Answer

_WEB = (80, 443, 8080)
_SPEAKERS = ("b", STEADY)
_SILENT_S = 0.4
_PATIENT_S = 3.0
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Probe:
    """One question: from where, to where. `source` is empty where the client's own address is not chosen."""

    origin: str
    source: str
    protocol: str
    address: str
    port: int

    def __str__(self) -> str:
        return f"{self.protocol} {self.address} port {self.port} from {self.origin} {self.source}".rstrip()


def every_probe(world: World) -> Iterator[Probe]:
    """Every question about a forward or 1:1 address that any configuration may hold."""
    for entry in map(world.resolved, (*ENTRIES.values(), TEMPORARY, ASKED)):
        # Each question counts, and is one of `Limits`.
        if entry.limits:
            continue
        for port in entry.ports:
            address4 = port.listen or PUBLIC4
            number = port.first + (1 if port.width > 1 else 0)
            yield from _asked(entry.version, port.protocol, address4, number)
        if entry.public:
            yield Probe("outside", CLIENT4, "tcp", entry.public, TCP_PORT if entry.domain == STEADY else 80)
    for domain in world.domains.values():
        # The way to the guests' own addresses is known outside, and leads nowhere.
        yield Probe("outside", CLIENT4, "tcp", domain.address4, 80)
        yield Probe("outside", CLIENT6, "tcp", domain.address6, 80)
    yield Probe("outside", CLIENT4, "tcp", PUBLIC4, 8080 + 2)
    # What a domain asks for, and is not allowed.
    yield Probe("outside", CLIENT4, "tcp", PUBLIC4_SECOND, REFUSED)


def _asked(version: int, protocol: str, address4: str, port: int) -> Iterator[Probe]:
    if version == 6:
        yield Probe("outside", CLIENT6, protocol, PUBLIC6, port)
        return
    for source in (CLIENT4, *BANNABLE):
        yield Probe("outside", source, protocol, address4, port)
    # On another address of the host, from the host itself, and from a guest of another network.
    other = (CLIENT4, PUBLIC4_SECOND) if address4 == PUBLIC4 else (CLIENT4_OTHER_LINK, OTHER_LINK4)
    yield Probe("outside", other[0], protocol, other[1], port)
    yield Probe("host", "", protocol, address4, port)
    yield Probe(STEADY, "", protocol, address4, port)
    # The daemon keeps a socket for each sender of datagrams for two minutes, which would look like a leak.
    if protocol == "tcp":
        yield Probe("host", LOOPBACK, protocol, LOOPBACK, port)


def expected(world: World, probe: Probe) -> str | None:
    """Who must answer: a name, `` for no one, `None` where that is not known to the model."""
    source = probe.source or ("192.168.121.50" if probe.origin == STEADY else PUBLIC4)
    found = answering(world, probe.protocol, probe.address, probe.port, source)
    if found is None:
        return ""
    domain, port = found
    if not domain.plugged or not _serves(domain.key, probe.protocol, port):
        return None
    return domain.name


def _serves(key: str, protocol: str, port: int) -> bool:
    if protocol == "udp":
        return key in _SPEAKERS and port == UDP_PORT
    return port in _WEB or (key in _SPEAKERS and port == TCP_PORT)


def drawn(random: Random, before: dict[Probe, str | None], world: World) -> list[Probe]:
    """Choose: up to six whose answer changed, and four others."""
    every = list(dict.fromkeys(every_probe(world)))
    changed = [probe for probe in every if before.get(probe, "") != expected(world, probe)]
    chosen = random.sample(changed, min(6, len(changed))) + random.sample(every, 4)
    return [probe for probe in dict.fromkeys(chosen) if expected(world, probe) is not None]


def answers(world: World) -> dict[Probe, str | None]:
    """What each question's answer must be now."""
    return {probe: expected(world, probe) for probe in every_probe(world)}


def ask(stage: Stage, probe: Probe) -> str:
    """Who answers; empty for no one."""
    place = stage.origins[probe.origin]
    timeout = _PATIENT_S if expected(stage.world, probe) else _SILENT_S
    source = probe.source or None
    if probe.protocol == "udp":
        return _name(place.udp(probe.address, probe.port, source=source, timeout=timeout))
    if probe.port == TCP_PORT:
        return _echoed(stage, probe, timeout)
    host = f"[{probe.address}]" if ":" in probe.address else probe.address
    return _name(place.fetch(f"http://{host}:{probe.port}/", source=source, timeout=timeout))


def _echoed(stage: Stage, probe: Probe, timeout: float) -> str:
    """Ask the server that only repeats what it is sent; there is one of them on that port."""
    try:
        with stage.origins[probe.origin].connect(
            probe.address, probe.port, source=probe.source or None, timeout=timeout
        ) as connection:
            connection.sendall(b"?")
            return STEADY if connection.recv(1) == b"?" else "somebody"
    except OSError:
        return ""


def _name(answer: Answer) -> str:
    return answer.text.rpartition(" ")[0] if answer.answered else ""
