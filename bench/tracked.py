"""Figure: wiped, and healed, while the connections of a forward that went are ended; and a status that counts them."""

import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

from bench.connections import tracked, without_entry
from bench.disturbances import CONNECTIONS
from bench.figure import Figure, Series, Unit, Want
from bench.processes import fine_cpu_seconds, peak
from bench.setting import Setting, inside, take_turns
from bench.wiped import BUSY, EVERYTHING, PATIENCE_S, Wiped, because, wipe_text

_FORWARDS: Final = 1000
_RUNS: Final = {1000: 3, 100_000: 2, CONNECTIONS: 2}
_QUICK_RUNS: Final = {1000: 3, 100_000: 3}
_LIMIT_MS: Final = 100.0
_NOTES = f"""\
A host with {_FORWARDS:,} forwards tracks N connections through one of them; that one goes, so that all of them are to
be ended, and `{{wipe}}` follows at once. The time is what a client of another forward sees, from its last connection
that was answered to the first that is answered again. Before that, on the same host with as many connections, the
daemon is stopped and `nft -f` puts our table back after the same wipe, some times: when nothing else in the network
namespace tracks connections any more, the kernel walks through all of them before it takes the first rule that does.
Just before that forward goes, a client of the control socket asks for the status, which counts them all: the first
since there are so many, once figures of before are too old to be shown. Memory is what the daemon itself, without its
helpers, has resident at most meanwhile, and just before that."""


def measure(setting: Setting) -> Figure:
    """Measure on one host."""
    runs = setting.runs(_RUNS, _QUICK_RUNS)
    wipe = EVERYTHING[setting.legacy]
    asked = _Asked(runs)
    with ExitStack() as at_end:
        wiped = Wiped(at_end.enter_context(setting.scene()), _FORWARDS)
        alone = {count: wiped.by_hand(wipe, tracked(wiped.scene, count)) for count in runs}
        gaps = take_turns(runs, lambda count: wiped.heal_once(wipe, _ending(wiped, count, asked)))
    healed, by_hand = (
        Series("wiped to healed", Unit.SECONDS, gaps, worst=True),
        Series("`nft -f` alone", Unit.SECONDS, alone, worst=True),
    )
    notes = _NOTES.format(wipe=wipe_text(wipe))
    title = "Wiped to healed while N connections end"
    wants = _wants(healed, by_hand)
    every = healed, by_hand, *asked.series()
    return Figure("connections", title, str(setting.flavour), notes, every, wants, "connections")


class _Asked:
    """What a status took, each time that a number of connections was there for the first time."""

    def __init__(self, counts: Iterable[int]) -> None:
        samples = ({count: list[float]() for count in counts} for _ in range(4))
        self._seconds, self._cpu, self._most, self._before = samples

    def ask(self, wiped: Wiped, count: int) -> None:
        """Ask until they were counted: what was counted before is shown for a while, the longer the more it was."""
        pid, found = wiped.daemon.pid, 0
        with peak(pid) as most:
            before = most()
            while found != count:
                began = fine_cpu_seconds(pid)
                _, seconds, number = inside(wiped.scene.host, "asking").split()
                cpu, found = fine_cpu_seconds(pid) - began, int(number)
                time.sleep(0.5)
        self._seconds[count].append(float(seconds))
        self._cpu[count].append(cpu)
        self._most[count].append(most())
        self._before[count].append(before)

    def series(self) -> tuple[Series, ...]:
        """Give the lines of the table."""
        return (
            Series("the first `status`", Unit.SECONDS, self._seconds, worst=True),
            Series("the first `status`: CPU", Unit.SECONDS, self._cpu, worst=True),
            Series("the first `status`: memory at most", Unit.BYTES, self._most, worst=True),
            Series("the first `status`: memory before", Unit.BYTES, self._before, worst=True),
        )


@contextmanager
def _ending(wiped: Wiped, count: int, asked: _Asked) -> Iterator[None]:
    """Have the daemon end so many connections from now on; before that, it is asked for its status."""
    with tracked(wiped.scene, count):
        asked.ask(wiped, count)
        before = len(wiped.daemon.log_lines())
        wiped.daemon.reload_with(without_entry(wiped.config, 0), PATIENCE_S)
        wiped.daemon.wait_log("^removed |flapping ", PATIENCE_S, start=before)
        yield
        wiped.daemon.wait_log("^ended ", PATIENCE_S, start=before)
        wiped.daemon.reload_with(wiped.config, PATIENCE_S)


def _wants(gaps: Series, alone: Series) -> tuple[Want, ...]:
    return tuple(
        Want(
            f"at {count:,} connections, at most {_LIMIT_MS:g} ms{BUSY}",
            [1000 * seconds for seconds in samples],
            _LIMIT_MS,
            " ms",
            because=because([1000 * seconds for seconds in samples], [1000 * each for each in alone.samples[count]]),
        )
        for count, samples in gaps.samples.items()
    )
