"""Figure: what it costs to ask who connects, and how often."""

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from bench.counted import taken
from bench.figure import NONE, Figure, Series, Unit, Want, ratios
from bench.forwards import FIRST_PORT, GREETING, LAST, PUBLIC, SERVER
from bench.scene import Scene
from bench.setting import Setting
from fwdaemon.config.sets import read_list
from tests.lab.place import wait_until

_NETWORKS: Final = (100_000,)
_QUICK_NETWORKS: Final = (1_000,)
_ROUNDS, _QUICK_ROUNDS = 40, 3
_CONNECTIONS: Final = 3000
_READINGS: Final = 20
_SOURCES, _A_SECOND, _BEFORE = 10_000, 20_000, 30_000
# More than any limit counts, and how many that is.
_TOO_MANY, _MOST_SOURCES, _MEMORY_ROUNDS, _MIB = 100_000, 65_535, 9, 1 << 20
_LIST: Final = "/etc/portfwd.d/list.txt"
_SET_PATIENCE_S: Final = 600.0
_NOTES = f"""\
A file of N addresses is read. Two clients outside open {_CONNECTIONS:,} connections, one after another each, through a
forward on a host whose configuration has no sets; and on a host with N addresses in a file, and as many in a set that
other programs fill, through a forward that asks nothing, one that denies the file, one that denies the set of others,
and one that limits each source to more than these. In turn, the same beside a flood of {_A_SECOND:,} first packets a
second from {_SOURCES:,} sources, to a forward that lets in all, and to one that lets in one a day of each source.
The memory of sources is what slabs of the kernel grow by that take an object for nearly each of them; of
{_TOO_MANY:,} sources, a limit counts {_MOST_SOURCES:,}.
Beside a flood over the limit is compared with beside one that is let in, not with no flood at all: the packets of
either take a part of these processors, whatever becomes of them.
Clients, host and server share the cores of one machine, which are busy all the time and limit the rates."""


@dataclass(frozen=True, slots=True)
class Asking:
    """A forward, by its place among the others, and what it asks."""

    place: int
    keys: str = ""

    @property
    def port(self) -> int:
        """The port of the host."""
        return FIRST_PORT + self.place

    @property
    def entry(self) -> str:
        """How the configuration says it."""
        where = f'domain = "{LAST}"\naddress = "{SERVER}"\nports = ["{self.port}:{GREETING}"]'
        return f"\n[[forward]]\n{where}\n{self.keys}\n"


_PLAIN: Final = Asking(0)
_FILE: Final = Asking(1, 'deny = ["set:file"]')
_OTHERS: Final = Asking(2, 'deny = ["set:others"]')
_LIMITS: Final = Asking(3, 'rate = "10000/second"\nmax_open = 1000')
_OPEN: Final = Asking(4)
_CLOSED: Final = Asking(5, 'rate = "1/day"')
_HEAD: Final = '[daemon]\nlibvirt = ["lxc:///system"]\nresync = "1h"\n'
_SETS: Final = f"""
[[set]]
name = "file"
file = "{_LIST}"

[[set]]
name = "others"
external = true
"""


@dataclass(slots=True)
class Host:
    """One host, and the connections per second that were measured on it, by the forward and what goes on beside."""

    scene: Scene
    rates: dict[tuple[Asking, str], list[float]] = field(default_factory=dict)
    memory: dict[int, list[float]] = field(default_factory=dict)

    def measure(self, asking: Asking, beside: str = "") -> None:
        """Connect through a forward."""
        found = self.scene.traffic.connections(PUBLIC, asking.port, _CONNECTIONS)
        self.rates.setdefault((asking, beside), []).append(found.rate)

    def flood(self, asking: Asking, beside: str) -> None:
        """Connect through a plain forward while another one is flooded, which is under way by then."""
        with self.scene.traffic.flooding(PUBLIC, asking.port, _SOURCES, 1 << 30, _A_SECOND):
            time.sleep(_BEFORE / _A_SECOND)
            self.measure(_PLAIN, beside)

    def fill(self, rounds: int, *, legacy: bool) -> None:
        """Have sources counted, by their number."""
        for sources in (_SOURCES, _TOO_MANY):
            counted = min(sources, _MOST_SOURCES)
            self.memory[sources] = taken(self.scene, sources, counted, rounds, legacy=legacy)

    def forget(self) -> None:
        """Drop what was measured while everything warmed up."""
        self.rates.clear()


def measure(setting: Setting) -> Figure:
    """Measure with a host that has sets, and one that has none."""
    (size,) = _QUICK_NETWORKS if setting.quick else _NETWORKS
    with ExitStack() as at_end:
        bare, asking = (Host(at_end.enter_context(setting.scene())) for _ in range(2))
        bare.scene.daemon(_HEAD + _PLAIN.entry)
        _fill(asking.scene, size, legacy=setting.legacy)
        asking.fill(setting.at_most(_QUICK_ROUNDS if setting.quick else _MEMORY_ROUNDS), legacy=setting.legacy)
        _take_turns(bare, asking, setting.at_most(_QUICK_ROUNDS if setting.quick else _ROUNDS))
    read = {number: [*_readings(number)] for number in (1_000, 100_000)}
    series = (Series("reading a file", Unit.SECONDS, read), *_series(bare, asking, size))
    title = "Asking who connects, by N networks"
    return Figure("admission", title, str(setting.flavour), _NOTES, series, _wants(bare, asking, read), "networks")


def _fill(scene: Scene, size: int, *, legacy: bool) -> None:
    """Start the daemon where there are so many networks, and wait until all are in the kernel."""
    scene.host.write(_LIST, "\n".join(_addresses(size)))
    every = (_PLAIN, _FILE, _OTHERS, _LIMITS, _OPEN, _CLOSED)
    scene.daemon(_HEAD + _SETS + "".join(asking.entry for asking in every))
    is_filled = partial(_is_filled_there, scene, size) if legacy else partial(_is_filled, scene)
    wait_until(is_filled, "the set of the file is full", _SET_PATIENCE_S, 1.0)
    text, program = _adding(size, legacy=legacy)
    scene.host.run(*program, stdin=text, timeout=_SET_PATIENCE_S)


def _adding(size: int, *, legacy: bool) -> tuple[str, tuple[str, ...]]:
    """Write what another program puts into its set, and name that program."""
    if legacy:
        return "".join(f"add KVMPF_others_4 {address}\n" for address in _addresses(size)), ("ipset", "restore")
    return f"add element ip kvm_portfwd set_others {{ {', '.join(_addresses(size))} }}\n", ("nft", "-f", "-")


def _is_filled(scene: Scene) -> bool:
    shown = scene.host.run("nft", "list", "chain", "ip", "kvm_portfwd", "deny.file", check=False).stdout
    return "deny.file" in shown and "filling" not in shown


def _is_filled_there(scene: Scene, size: int) -> bool:
    shown = scene.host.run("ipset", "list", "-terse", "KVMPF_file_4", check=False).stdout
    return f"Number of entries: {size}\n" in shown


def _addresses(size: int) -> Iterator[str]:
    """Give so many addresses, of which none touches another, so that each is an element of its own."""
    return (f"11.{number >> 15}.{number >> 7 & 255}.{number << 1 & 255}" for number in range(size))


def _take_turns(bare: Host, asking: Host, rounds: int) -> None:
    for turn in range(1 + rounds):
        bare.measure(_PLAIN)
        for forward in (_PLAIN, _FILE, _OTHERS, _LIMITS):
            asking.measure(forward)
        asking.flood(_OPEN, "open")
        asking.flood(_CLOSED, "closed")
        if not turn:
            bare.forget()
            asking.forget()


def _readings(size: int) -> Iterator[float]:
    text = "\n".join(_addresses(size)).encode()
    for _ in range(_READINGS):
        begun = time.perf_counter()
        read_list(Path(_LIST), text)
        yield time.perf_counter() - begun


def _series(bare: Host, asking: Host, size: int) -> tuple[Series, ...]:
    told = {
        "connections, asking nothing, with sets beside": (_PLAIN, ""),
        "connections, denying a file": (_FILE, ""),
        "connections, denying the set of others": (_OTHERS, ""),
        "connections, with limits": (_LIMITS, ""),
        "connections, beside a flood that is let in": (_PLAIN, "open"),
        "connections, beside a flood over the limit": (_PLAIN, "closed"),
    }
    return (
        Series("connections, no sets at all", Unit.PER_SECOND, {NONE: bare.rates[_PLAIN, ""]}),
        *(Series(label, Unit.PER_SECOND, {size: asking.rates[key]}) for label, key in told.items()),
        *(Series(f"memory of {of:,} sources", Unit.BYTES, {size: took}) for of, took in asking.memory.items()),
    )


def _wants(bare: Host, asking: Host, read: Mapping[int, list[float]]) -> tuple[Want, ...]:
    plain = asking.rates[_PLAIN, ""]

    def at_least(text: str, rates: list[float], base: list[float], whose: str = "those that ask nothing") -> Want:
        return Want(f"{text} at least 95 % of {whose}", ratios(rates, base, 100), 95, " %", at_least=True)

    return (
        Want("a file of 100,000 lines is read in at most 1 s", read[100_000], 1.0, " s"),
        at_least(
            "connections that ask nothing, with sets beside,", plain, bare.rates[_PLAIN, ""], "those without sets"
        ),
        at_least("connections, denying a file,", asking.rates[_FILE, ""], plain),
        at_least("connections, denying the set of others,", asking.rates[_OTHERS, ""], plain),
        at_least(
            "connections beside a flood over the limit",
            asking.rates[_PLAIN, "closed"],
            asking.rates[_PLAIN, "open"],
            "those beside one that is let in",
        ),
        *(
            Want(f"memory of {sources:,} sources at most {most} MiB", [each / _MIB for each in took], most, " MiB")
            for sources, most in ((_SOURCES, 4), (_TOO_MANY, 20))
            for took in [asking.memory[sources]]
        ),
    )
