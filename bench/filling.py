"""Figure: large sets come into force, and come back after a wipe."""

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from statistics import median
from textwrap import fill
from typing import Final

from bench.admission import adding, addresses, is_filled
from bench.figure import Figure, Series, Unit, Want, ratios
from bench.forwards import PUBLIC, last_port
from bench.processes import wait_quiet
from bench.scene import Scene
from bench.setting import Setting
from bench.table import number
from bench.wiped import EVERYTHING, PATIENCE_S, Wiped, wipe_text
from tests.lab.daemon import Daemon
from tests.lab.host import CLIENT4
from tests.lab.place import wait_until

_RUNS: Final = {1_000: 5, 100_000: 5}
_QUICK_RUNS: Final = {1_000: 2}
_MEASURED_AT: Final = 100_000
_IN_FORCE_S, _SERVED_S, _TIMES, _WIDTH = 2.0, 3.0, 1.3, 120
_LIST: Final = "/etc/portfwd.d/list.txt"
_NOBODY: Final = "192.0.2.1"
_SETS: Final = f"""
[[set]]
name = "file"
file = "{_LIST}"

[[set]]
name = "others"
external = true
"""
# As an editor replaces a file.
_REPLACE: Final = f"mkdir -p /etc/portfwd.d && cat >{_LIST}.new && mv {_LIST}.new {_LIST}"
_WRITTEN, _LOADED = "replaced to in force", "`{program}` alone, the same addresses"
_HEALED, _BACK = "wiped to served", "`nft -f` alone, our table with both sets"
_NOTES = """\
A forward denies a set that is in a file, and one that other programs fill, which has N addresses. A file of N addresses
replaces one of a single line: the time is from then to the last answer that a client outside has, whose address is
among them. The daemon looks at the file each second, so half a second of that is waiting. In turn, `{program}` fills a
set of its own with these addresses. Then, with N addresses in the file as well, none of them a client's, `{wipe}` is
followed by the time that a client outside has no answer{alone}. libvirt's own rules are put back between the runs. Each
N has a host of its own, and the hosts take turns."""
_ALONE = "; in turn, `nft -f` alone puts our table back with all of its elements, while the daemon is stopped"


class _Filled:
    """One host, and what was measured on it, by what it is."""

    def __init__(self, scene: Scene, size: int, *, legacy: bool) -> None:
        self._scene, self._size, self._legacy = scene, size, legacy
        self._networks = [*addresses(size)]
        self.found: dict[str, list[float]] = {}
        self._replace([_NOBODY])
        self._wiped = Wiped(scene, 1, _start)
        text, program = adding("others", self._networks, legacy=legacy)
        scene.host.run(*program, stdin=text, timeout=PATIENCE_S)
        self._settle()

    def take_turn(self, *, counted: bool) -> None:
        """Measure all once."""
        ways: dict[str, Callable[[], float]] = {_WRITTEN: self._write, _LOADED: self._load, _HEALED: self._heal}
        if not self._legacy:
            ways[_BACK] = partial(self._wiped.by_hand_once, EVERYTHING[False])
        for label, once in ways.items():
            sample = once()
            if counted:
                self.found.setdefault(label, []).append(sample)
        self._replace([_NOBODY])
        self._settle()

    def _write(self) -> float:
        """Have the client denied by a file, and give the seconds that takes; then it is in none any more."""
        with self._scene.traffic.knocking(PUBLIC, last_port(1)) as knocking:
            knocking.wait("up", PATIENCE_S)
            before = knocking.changes
            begun = self._replace([*self._networks[1:], CLIENT4])
            seconds = knocking.silence(before, PATIENCE_S) - begun
        self._replace(self._networks)
        wait_until(partial(is_filled, self._scene, "file", self._size, legacy=self._legacy), "it is full", PATIENCE_S)
        self._settle()
        return seconds

    def _replace(self, networks: list[str]) -> float:
        """Write the file, and give the time when it was replaced."""
        self._scene.host.run("sh", "-ec", _REPLACE, stdin="".join(f"{network}\n" for network in networks))
        return time.monotonic()

    def _load(self) -> float:
        """Fill a set of another table by the kernel's own program."""
        text, program, undo = _alike(self._networks, legacy=self._legacy)
        begun = time.monotonic()
        self._scene.host.run(*program, stdin=text, timeout=PATIENCE_S)
        seconds = time.monotonic() - begun
        self._scene.host.run(*undo)
        self._settle()
        return seconds

    def _heal(self) -> float:
        return self._wiped.heal_once(_wipe(legacy=self._legacy))

    def _settle(self) -> None:
        wait_quiet(self._wiped.daemon.pid)


def _start(scene: Scene, text: str) -> Daemon:
    denying = text.replace("[daemon]\n", '[daemon]\ndeny = ["set:file", "set:others"]\n', 1)
    return scene.daemon(denying + _SETS)


def _alike(networks: list[str], *, legacy: bool) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """Write a set like ours; who reads that, and what takes the set away."""
    if legacy:
        head, lines = "create measured hash:net maxelem 1000000\n", (f"add measured {each}\n" for each in networks)
        return head + "".join(lines), ("ipset", "restore"), ("ipset", "destroy", "measured")
    text = f"table ip measured {{ set listed {{ type ipv4_addr; elements = {{ {', '.join(networks)} }}; }}; }}\n"
    return text, ("nft", "-f", "-"), ("nft", "delete", "table", "ip", "measured")


def _wipe(*, legacy: bool) -> tuple[str, ...]:
    """Take all sets, too: in iptables-legacy, they are apart."""
    return ("sh", "-c", f"{' '.join(EVERYTHING[True])} && ipset flush") if legacy else EVERYTHING[False]


def measure(setting: Setting) -> Figure:
    """Measure on one host for each number of addresses."""
    runs = setting.runs(_RUNS, _QUICK_RUNS)
    with ExitStack() as at_end:
        hosts = {size: _Filled(at_end.enter_context(setting.scene()), size, legacy=setting.legacy) for size in runs}
        # The first turn warms up.
        for turn in range(1 + max(runs.values())):
            for host in hosts.values():
                host.take_turn(counted=turn > 0)
    found = {size: host.found for size, host in hosts.items()}
    program = "ipset restore" if setting.legacy else "nft -f"
    series = [
        Series(label.format(program=program), Unit.SECONDS, {size: each[label] for size, each in found.items()})
        for label in hosts[min(hosts)].found
    ]
    wipe = "iptables-legacy -t nat -F; ipset flush" if setting.legacy else wipe_text(EVERYTHING[False])
    notes = fill(_NOTES.format(program=program, wipe=wipe, alone="" if setting.legacy else _ALONE), _WIDTH)
    title = "Sets of N addresses, from nothing"
    return Figure("filling", title, str(setting.flavour), notes, tuple(series), _wants(found), "addresses")


def _wants(found: Mapping[int, Mapping[str, list[float]]]) -> tuple[Want, ...]:
    if (measured := found.get(_MEASURED_AT)) is None:
        return ()
    at = f"at {_MEASURED_AT:,}, "
    because = f"The kernel's own program takes {number(median(measured[_LOADED]))} s for the same addresses."
    written = Want(
        f"{at}{_WRITTEN} in at most {_IN_FORCE_S:g} s", measured[_WRITTEN], _IN_FORCE_S, " s", because=because
    )
    if _BACK not in measured:
        return written, Want(f"{at}{_HEALED} in at most {_SERVED_S:g} s", measured[_HEALED], _SERVED_S, " s")
    times = ratios(measured[_HEALED], measured[_BACK])
    return written, Want(f"{at}{_HEALED} in at most {_TIMES:g} times `nft -f` alone", times, _TIMES, " times")
