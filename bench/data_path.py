"""Figure: what forwards cost the packets."""

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Final

from bench.figure import NONE, Figure, Series, Spread, Unit, Want, ratios
from bench.forwards import GREETING, PUBLIC, SERVER, STREAM, STREAM_PORT, config, hook_forwards, last_port
from bench.hook_scripts import chains, restore_text
from bench.scene import Scene
from bench.setting import Setting
from bench.table import number
from bench.traffic import Connections

_OURS: Final = 1, 10000
_HOOKS: Final = 1, 1000, 10000
_QUICK_OURS: Final = 1, 100
_QUICK_HOOKS: Final = (100,)
_ROUNDS, _QUICK_ROUNDS = 60, 3
# Through ten thousand linear rules, a connection takes milliseconds.
_CONNECTIONS, _HOOK_CONNECTIONS = 3000, 300
_TRANSFER_S = 0.3
_BITS = 8
_NOTES = """\
Through the last of N forwards, two clients outside open {count:,} connections, one after another each, and a connection
receives for {seconds:g} s. In turn, the same to the server's own address, over a plain route on a host with libvirt's
rules and none of ours; and through N forwards of linear iptables rules, as hook scripts leave them, a tenth as many
connections. Every way has a host of its own. Clients, host and server share the cores of one machine, which are busy
all the time and limit the rates. Each client waits for its answer, so the rate is theirs, not the most that the host
can do."""


@dataclass(slots=True)
class Way:
    """One way to the server and what was measured on it."""

    scene: Scene
    address: str
    port: int
    stream: int
    count: int = _CONNECTIONS
    connections: list[Connections] = field(default_factory=list)
    bits: list[float] = field(default_factory=list)

    def measure(self) -> None:
        """Connect, then transfer."""
        self.connections.append(self.scene.traffic.connections(self.address, self.port, self.count))
        self.bits.append(_BITS * self.scene.traffic.throughput(self.address, self.stream, _TRANSFER_S))

    def forget(self) -> None:
        """Drop what was measured while everything warmed up."""
        self.connections.clear()
        self.bits.clear()

    def each(self, attribute: str) -> list[float]:
        """The samples of `rate`, `p50`, `p99` or `bits`."""
        return self.bits if attribute == "bits" else [getattr(sample, attribute) for sample in self.connections]


@dataclass(frozen=True, slots=True)
class Ways:
    """All of them, by the number of forwards."""

    plain: Way
    ours: dict[int, Way]
    hooks: dict[int, Way]

    def all(self) -> list[Way]:
        """Each once."""
        return [self.plain, *self.ours.values(), *self.hooks.values()]

    def series(self, label: str, attribute: str, unit: Unit) -> tuple[Series, ...]:
        """One kind of sample on each way."""
        return (
            Series(f"{label}, plain route", unit, {NONE: self.plain.each(attribute)}),
            Series(f"{label}, kvm-portfwd", unit, {size: way.each(attribute) for size, way in self.ours.items()}),
            Series(f"{label}, hook scripts", unit, {size: way.each(attribute) for size, way in self.hooks.items()}),
        )


def measure(setting: Setting) -> Figure:
    """Measure with a host for each way."""
    ours, hooks = (_QUICK_OURS, _QUICK_HOOKS) if setting.quick else (_OURS, _HOOKS)
    with ExitStack() as at_end:

        def scene() -> Scene:
            # Only a routed network takes connections to its guests' own addresses.
            return at_end.enter_context(setting.scene(mode="route"))

        ways = Ways(
            Way(scene(), SERVER, GREETING, STREAM),
            {size: _through(_with_ours(scene(), size), size) for size in ours},
            {size: _through(_with_hooks(scene(), size), size, _HOOK_CONNECTIONS) for size in hooks},
        )
        _take_turns(ways, _QUICK_ROUNDS if setting.quick else _ROUNDS)
    notes = _NOTES.format(count=_CONNECTIONS, seconds=_TRANSFER_S)
    title = "Through the last of N forwards"
    return Figure("data-path", title, str(setting.flavour), notes, _series(ways), _wants(ways))


def _through(scene: Scene, size: int, count: int = _CONNECTIONS) -> Way:
    return Way(scene, PUBLIC, last_port(size), STREAM_PORT, count)


def _with_ours(scene: Scene, size: int) -> Scene:
    scene.daemon(config(size, resync="1h", stream=True))
    return scene


def _with_hooks(scene: Scene, size: int) -> Scene:
    rules = chains(), restore_text(hook_forwards(size, stream=True))
    for text in rules:
        scene.host.run("iptables-restore", "--noflush", stdin=text)
    return scene


def _take_turns(ways: Ways, rounds: int) -> None:
    for way in ways.all():
        way.measure()
        way.forget()
    for _ in range(rounds):
        for way in ways.all():
            way.measure()


def _series(ways: Ways) -> tuple[Series, ...]:
    return (
        *ways.series("connections", "rate", Unit.PER_SECOND),
        *ways.series("connect, p50", "p50", Unit.SECONDS),
        *ways.series("connect, p99", "p99", Unit.SECONDS),
        *ways.series("transfer", "bits", Unit.BITS_PER_SECOND),
    )


def _wants(ways: Ways) -> tuple[Want, ...]:
    few, many = (ways.ours[size] for size in (min(ways.ours), max(ways.ours)))
    sizes = f"at {max(ways.ours):,} at least 95 % of"
    one = f"at {min(ways.ours):,}"
    rates, bits = _percent(many, few, "rate"), _percent(many, ways.plain, "bits")
    return (
        Want(f"connections {sizes} those {one}", rates, 95, " %", at_least=True, because=_because_of_rates(ways)),
        Want(f"connect, p50, at {max(ways.ours):,} at most 105 % of that {one}", _percent(many, few, "p50"), 105, " %"),
        Want(
            "transfer at least 98 % of that over a plain route", bits, 98, " %", at_least=True, because=_because(ways)
        ),
    )


def _because(ways: Ways) -> str:
    few = ways.hooks[min(ways.hooks)]
    through = Spread.of(_percent(few, ways.plain, "bits")).median
    return (
        f"On a host without kvm-portfwd, a hook script with rules for {min(ways.hooks):,} reaches"
        f" {number(through)} % of a plain route's throughput: the kernel translates each packet, whoever asked for it."
        " With our rules, packets of an established connection pass one chain, in which no rule matches them."
    )


def _because_of_rates(ways: Ways) -> str:
    plain = ways.plain.each("rate")
    same = Spread.of(ratios(plain[1:], plain[:-1], 100))
    return (
        "The clients share the cores with the host and the server: over a plain route, where nothing differs, their"
        f" rate is {number(same.median)} % ({number(same.low)} to {number(same.high)}) of that in the turn before."
    )


def _percent(way: Way, base: Way, attribute: str) -> list[float]:
    return ratios(way.each(attribute), base.each(attribute), 100)
