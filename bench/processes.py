"""What a process and all below it cost: CPU time and memory, as proc(5) gives them."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# A process that ends while it is looked at: its folder has gone, or is there and answers ESRCH.
_GONE = FileNotFoundError, ProcessLookupError
_TICK = 1 / os.sysconf("SC_CLK_TCK")
_KIB = 1024
# Nothing goes on any more when a process takes a tick at most in each of these steps, and does not wait for a processor
# at their ends, for longer than the daemon waits before it looks whether the kernel holds what it wrote.
_STEP_S, _QUIET_S, _WITHIN_S = 0.25, 1.25, 180.0


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes resident, the same with what is shared divided among those who share it, and those private and written."""

    rss: int
    pss: int
    private: int


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and all below it, also of those that ended and were waited for."""
    return sum(_own_and_ended(process) for process in tree(pid))


def cpu_seconds_below(pid: int) -> float:
    """The same without the process itself; it has to run, but what it started may end meanwhile."""
    _, *below = tree(pid)
    return sum(map(_own_and_ended, below))


def fine_cpu_seconds(pid: int) -> float:
    """The same for one process, not in steps of a hundredth of a second; threads that ended do not count."""
    running = sum(map(_on_cpu_ns, Path(f"/proc/{pid}/task").glob("*/schedstat"))) / 1e9
    return running + sum(map(int, _fields(Path(f"/proc/{pid}/stat"))[13:15])) * _TICK


def memory(pid: int) -> Memory:
    """Memory of a process and all below it that run now."""
    rollups = [_rollup(process) for process in tree(pid)]
    return Memory(*(sum(rollup[name] for rollup in rollups) for name in ("Rss", "Pss", "Private_Dirty")))


@contextmanager
def peak(pid: int) -> Iterator[Callable[[], int]]:
    """Give a function for how many bytes a process has had resident at most since the block began."""
    Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")
    yield lambda: _kib(Path(f"/proc/{pid}/status"), "VmHWM") * _KIB


def wait_quiet(pid: int, within: float = _WITHIN_S, quiet_for: float = _QUIET_S) -> None:
    """Wait until a process and all below it have had nothing to do for that long.

    Raises:
        TimeoutError: they still work after `within` seconds.

    """
    begun = quiet_since = time.monotonic()
    before = cpu_seconds(pid)
    while (now := time.monotonic()) < quiet_since + quiet_for:
        if now > begun + within:
            raise TimeoutError(f"process {pid} is still busy after {within:.0f} s")
        time.sleep(_STEP_S)
        before, last = cpu_seconds(pid), before
        if before - last > _TICK * 1.5 or any(map(_wants_to_run, tree(pid))):
            quiet_since = time.monotonic()


def tree(pid: int) -> Iterator[int]:
    """The process and all below it."""
    yield pid
    for child in children(pid):
        yield from _while_there(child)


def children(pid: int) -> Iterator[int]:
    """The processes that a process started and that still run."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        yield from _started_by(thread)


def _started_by(thread: Path) -> list[int]:
    """The processes that a thread started; none if it has ended meanwhile."""
    try:
        return [int(word) for word in (thread / "children").read_text(encoding="ascii").split()]
    except _GONE:
        return []


def _kib(status: Path, name: str) -> int:
    found = (line.split() for line in status.read_text(encoding="utf-8", errors="replace").splitlines())
    return next(int(words[1]) for words in found if words[0] == f"{name}:")


def _while_there(pid: int) -> list[int]:
    try:
        return list(tree(pid))
    except _GONE:
        return []


def _own_and_ended(pid: int) -> float:
    # utime, stime, cutime and cstime are fields 14 to 17.
    return sum(map(int, _fields(Path(f"/proc/{pid}/stat"))[11:15])) * _TICK


def _on_cpu_ns(schedstat: Path) -> int:
    """The first of three figures (Documentation/scheduler/sched-stats.rst)."""
    return int(schedstat.read_text(encoding="ascii").split()[0])


def _wants_to_run(pid: int) -> bool:
    """Whether a thread of it runs, or would if it were given a processor or a disk."""
    states = (_fields(stat)[0] for stat in Path(f"/proc/{pid}/task").glob("*/stat"))
    return not {"R", "D"}.isdisjoint(states)


def _fields(stat: Path) -> list[str]:
    """From its state, the third, on; the name before it, in parentheses, may hold anything. Zeros if it has gone."""
    try:
        return stat.read_text(encoding="utf-8").rpartition(")")[2].split()
    except _GONE:
        return ["0"] * 15


def _rollup(pid: int) -> dict[str, int]:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]
    except _GONE:
        return {"Rss": 0, "Pss": 0, "Private_Dirty": 0}
    return {name: int(value.split()[0]) * _KIB for name, _, value in (line.partition(":") for line in lines)}
