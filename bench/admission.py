"""Figure: what it costs to ask who connects, and how often."""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

from bench.counted import taken
from bench.figure import NONE, Figure, Series, Spread, Unit, Want, ratios
from bench.forwards import FIRST_PORT, GREETING, LAST, PUBLIC, SERVER
from bench.scene import Scene
from bench.setting import Setting
from bench.table import number
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
_MIXED_LIST: Final = "/etc/portfwd.d/mixed.txt"
_SET_PATIENCE_S: Final = 600.0
_FIRST: Final = IPv4Address("11.0.0.0")
_NOTES = f"""\
A file of N addresses is read. Two clients outside open {_CONNECTIONS:,} connections, one after another each, through a
forward on a host whose configuration has no sets; and on a host with N addresses in a file, and as many in a set that
other programs fill, through a forward that asks nothing, one that denies the file, one that denies the set of others,
and one that limits each source to more than these; and through two that deny as many networks of /24 to /32 instead, in
a file and in a set of others. In turn, the same beside a flood of {_A_SECOND:,} first packets a second from
{_SOURCES:,} sources: to a forward that lets in all, to one that lets in one a day of each source, and on the other host
to a port from which one rule of nftables drops all, ahead of everything else.
The memory of sources is what slabs of the kernel grow by that take an object for nearly each of them; of
{_TOO_MANY:,} sources, a limit counts {_MOST_SOURCES:,}.
Clients, host, server and who floods share the cores of one machine, which are busy all the time and limit the rates."""


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
_MIXED: Final = Asking(6, 'deny = ["set:mixed"]')
_MIXED_OTHERS: Final = Asking(7, 'deny = ["set:mixed-others"]')
_ASKING: Final = (_PLAIN, _FILE, _OTHERS, _LIMITS, _MIXED, _MIXED_OTHERS)
# What one rule drops on the host without sets; no forward is there.
_DROPPED: Final = Asking(8)
_DROPPING: Final = f"""
table ip flooded {{
    chain before {{
        type filter hook prerouting priority -400
        ip daddr {PUBLIC} tcp dport {_DROPPED.port} drop
    }}
}}
"""
_HEAD: Final = '[daemon]\nlibvirt = ["lxc:///system"]\nresync = "1h"\n'
_SETS: Final = f"""
[[set]]
name = "file"
file = "{_LIST}"

[[set]]
name = "mixed"
file = "{_MIXED_LIST}"

[[set]]
name = "others"
external = true

[[set]]
name = "mixed-others"
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
        bare.scene.host.run("nft", "-f", "-", stdin=_DROPPING)
        _fill(asking.scene, size, legacy=setting.legacy)
        asking.fill(setting.at_most(_QUICK_ROUNDS if setting.quick else _MEMORY_ROUNDS), legacy=setting.legacy)
        _take_turns(bare, asking, setting.at_most(_QUICK_ROUNDS if setting.quick else _ROUNDS))
    read = {lines: [*_readings(lines)] for lines in (1_000, 100_000)}
    series = (Series("reading a file", Unit.SECONDS, read), *_series(bare, asking, size))
    title = "Asking who connects, by N networks"
    return Figure("admission", title, str(setting.flavour), _NOTES, series, _wants(bare, asking, read), "networks")


def _fill(scene: Scene, size: int, *, legacy: bool) -> None:
    """Start the daemon where there are so many networks, and wait until all are in the kernel."""
    networks = {"": [*addresses(size)], "mixed": [*_mixed(size)]}
    scene.host.write(_LIST, "\n".join(networks[""]))
    scene.host.write(_MIXED_LIST, "\n".join(networks["mixed"]))
    scene.daemon(_HEAD + _SETS + "".join(asking.entry for asking in (*_ASKING, _OPEN, _CLOSED)))
    for name in ("file", "mixed"):
        wait_until(partial(is_filled, scene, name, size, legacy=legacy), f"{name} is full", _SET_PATIENCE_S, 1.0)
    for name, each in (("others", networks[""]), ("mixed-others", networks["mixed"])):
        text, program = adding(name, each, legacy=legacy)
        scene.host.run(*program, stdin=text, timeout=_SET_PATIENCE_S)


def adding(name: str, networks: Iterable[str], *, legacy: bool) -> tuple[str, tuple[str, ...]]:
    """Write what another program puts into its set, and name that program."""
    if legacy:
        return "".join(f"add KVMPF_{name}_4 {network}\n" for network in networks), ("ipset", "restore")
    return f"add element ip kvm_portfwd set_{name} {{ {', '.join(networks)} }}\n", ("nft", "-f", "-")


def is_filled(scene: Scene, name: str, size: int, *, legacy: bool) -> bool:
    """Whether the file of a set with so many networks is in the kernel."""
    if legacy:
        shown = scene.host.run("ipset", "list", "-terse", f"KVMPF_{name}_4", check=False).stdout
        return f"Number of entries: {size}\n" in shown
    shown = scene.host.run("nft", "list", "chain", "ip", "kvm_portfwd", f"deny.{name}", check=False).stdout
    return f"deny.{name}" in shown and "filling" not in shown


def addresses(size: int) -> Iterator[str]:
    """Give so many addresses, of which none touches another, so that each is an element of its own."""
    return (f"11.{index >> 15}.{index >> 7 & 255}.{index << 1 & 255}" for index in range(size))


def _mixed(size: int) -> Iterator[str]:
    """Give so many networks of which none touches another, from /24 to single addresses in turn."""
    return (f"{_FIRST + (index << 9)}/{24 + index % 9}" for index in range(size))


def _take_turns(bare: Host, asking: Host, rounds: int) -> None:
    for turn in range(1 + rounds):
        bare.measure(_PLAIN)
        for forward in _ASKING:
            asking.measure(forward)
        asking.flood(_OPEN, "open")
        asking.flood(_CLOSED, "closed")
        bare.flood(_DROPPED, "dropped")
        if not turn:
            bare.forget()
            asking.forget()


def _readings(size: int) -> Iterator[float]:
    text = "\n".join(addresses(size)).encode()
    for _ in range(_READINGS):
        begun = time.perf_counter()
        read_list(Path(_LIST), text)
        yield time.perf_counter() - begun


def _series(bare: Host, asking: Host, size: int) -> tuple[Series, ...]:
    told = {
        "connections, asking nothing, with sets beside": (_PLAIN, ""),
        "connections, denying a file": (_FILE, ""),
        "connections, denying the set of others": (_OTHERS, ""),
        "connections, denying a file of /24 to /32": (_MIXED, ""),
        "connections, denying a set of others of /24 to /32": (_MIXED_OTHERS, ""),
        "connections, with limits": (_LIMITS, ""),
        "connections, beside a flood that is let in": (_PLAIN, "open"),
        "connections, beside a flood over the limit": (_PLAIN, "closed"),
    }
    dropped = bare.rates[_PLAIN, "dropped"]
    return (
        Series("connections, no sets at all", Unit.PER_SECOND, {NONE: bare.rates[_PLAIN, ""]}),
        Series("connections, no sets, beside a flood that one rule drops", Unit.PER_SECOND, {NONE: dropped}),
        *(Series(label, Unit.PER_SECOND, {size: asking.rates[key]}) for label, key in told.items()),
        *(Series(f"memory of {of:,} sources", Unit.BYTES, {size: took}) for of, took in asking.memory.items()),
    )


def _because(bare: Host) -> str:
    least = Spread.of(ratios(bare.rates[_PLAIN, "dropped"], bare.rates[_PLAIN, ""], 100)).median
    return (
        f"Where one rule drops such a flood ahead of everything else, {number(least)} % of the connections are left:"
        " to send, receive and drop its packets takes the rest of the processors, which all of them share."
    )


def _wants(bare: Host, asking: Host, read: Mapping[int, list[float]]) -> tuple[Want, ...]:
    plain = asking.rates[_PLAIN, ""]

    def at_least(
        text: str, rates: list[float], base: list[float], whose: str = "those that ask nothing", because: str = ""
    ) -> Want:
        asked = f"{text} at least 95 % of {whose}"
        return Want(asked, ratios(rates, base, 100), 95, " %", at_least=True, because=because)

    return (
        Want("a file of 100,000 lines is read in at most 1 s", read[100_000], 1.0, " s"),
        at_least(
            "connections that ask nothing, with sets beside,", plain, bare.rates[_PLAIN, ""], "those without sets"
        ),
        at_least("connections, denying a file,", asking.rates[_FILE, ""], plain),
        at_least("connections, denying the set of others,", asking.rates[_OTHERS, ""], plain),
        at_least("connections, denying a file of /24 to /32,", asking.rates[_MIXED, ""], plain),
        at_least("connections, denying a set of others of /24 to /32,", asking.rates[_MIXED_OTHERS, ""], plain),
        at_least(
            "connections beside a flood over the limit",
            asking.rates[_PLAIN, "closed"],
            plain,
            "those without any flood",
            _because(bare),
        ),
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
