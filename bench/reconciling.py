"""Reconciles on the host it runs on, again and again, and times it; prints JSON. The daemon must not run there.

`reconciling.py apply SIZE RUNS HOOK_RUNS` makes everything from nothing, and in turn hands the very same text to the
kernel's own program, and runs one `iptables` for each rule as hook scripts do. `reconciling.py change SIZE RUNS` lets
the last domain stop and start. The inventory is taken before; what shall be is worked out within the time.
`reconciling.py report SIZE RUNS` writes the audit lines of the first of these alone.
"""

import asyncio
import json
import logging
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from bench.forwards import FIRST_PORT, LAST, config, hook_forwards
from bench.hook_scripts import chains, commands, no_chains
from bench.processes import cpu_seconds_below
from bench.timed import seconds_of
from fwdaemon import config as configuration
from fwdaemon.audit import causes, journal, lines
from fwdaemon.config.model import Config
from fwdaemon.conflicts.watch import BackgroundConflictWatch, ConflictWatch
from fwdaemon.core.inventory import Inventory
from fwdaemon.core.report import ApplyResult, Reason, ReasonKind
from fwdaemon.core.state import Desired
from fwdaemon.events import take_inventory
from fwdaemon.hostnet.host_network import SystemHostNetwork
from fwdaemon.kernel import conntrack, memory
from fwdaemon.kernel.process import Finished, SystemRunner
from fwdaemon.netfilter import Netfilter
from fwdaemon.reconcile import Reconciler, Request, Seams
from fwdaemon.resolve.placement import Placement, desired_state

Seconds = dict[str, list[float]]

_URI = "lxc:///system"
# Each run has other ports as long as there are some, so that nothing is known of them from a run before.
_PORTS = 50000
# Longer than a forward is held after its domain stopped.
_LATER_S = 60.0


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds: all of them, those until the rules were in the kernel, and those of programs that change rules.

    And those of processors: `cpu` with programs, `helpers` of those who write to iptables-legacy.
    """

    whole: float
    committed: float
    programs: float
    cpu: float
    helpers: float


class TimedRunner(SystemRunner):
    """Adds up what the programs take that change rules; all others only ask."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0

    def run(self, *argv: str, stdin: str = "") -> Finished:
        """See `Runner.run`."""
        begun = time.monotonic()
        try:
            return super().run(*argv, stdin=stdin)
        finally:
            self.seconds += time.monotonic() - begun if stdin else 0.0


class TimedNetfilter(Netfilter):
    """Remembers when the kernel held what it shall."""

    done = 0.0

    def apply(self, desired: Desired, *, full: bool) -> ApplyResult:
        """See `Backend.apply`."""
        result = super().apply(desired, full=full)
        self.done = time.monotonic()
        return result


class Subject:
    """What is measured: the product from inventory to audit, without its loop and its events."""

    def __init__(self, inventory: Inventory) -> None:
        self._runner = TimedRunner()
        self._now = 0.0
        self.inventory = inventory
        self.netfilter = TimedNetfilter(self._runner)
        self.legacy = self.netfilter.locate().backend == "iptables"
        self._blank = _run("iptables-legacy-save") if self.legacy else ""
        self.forget()

    def forget(self) -> None:
        """Begin as if nothing had been reconciled before."""
        conflicts = BackgroundConflictWatch(ConflictWatch(SystemRunner()), lambda _: None)
        self._reconciler = Reconciler(
            Seams(self.netfilter, SystemHostNetwork(self.netfilter.confined), conntrack, conflicts, time)
        )
        self._placement: Placement | None = None

    def reconcile(self, config: Config, inventory: Inventory) -> Cost:
        """Reconcile once, as the daemon does."""
        self._runner.seconds, begun, cpu, helpers = 0.0, time.monotonic(), _cpu_seconds(), _cpu_of_helpers()
        # The clock of holding back is put forward, so that whatever was held is due.
        self._now += _LATER_S
        local = frozenset(address.address for address in inventory.host_addresses)
        request = Request((), (), self._now, local=local, taken=inventory.guest_addresses)
        with memory.collecting_later():
            self._reconciler.reconcile(self._placed(config, inventory), request)
        return Cost(
            time.monotonic() - begun,
            self.netfilter.done - begun,
            self._runner.seconds,
            _cpu_seconds() - cpu,
            _cpu_of_helpers() - helpers,
        )

    def _placed(self, config: Config, inventory: Inventory) -> Desired:
        if self._placement is None or self._placement.config is not config:
            self._placement = Placement(config, inventory)
        return self._placement.move(inventory)

    def native(self, config: Config, text: Path) -> list[str]:
        """Write the rules as text; the program that takes it."""
        rules = self.netfilter.render(desired_state(config, self.inventory))
        text.write_text(f"{rules}\n", encoding="utf-8")
        return ["iptables-legacy-restore", "--noflush", str(text)] if self.legacy else ["nft", "-f", str(text)]

    def check(self, config: Config) -> None:
        """Make sure that the kernel holds every forward.

        Raises:
            RuntimeError: it does not, so what was measured is worth nothing.

        """
        if missing := self.netfilter.preview(desired_state(config, self.inventory)).mended:
            raise RuntimeError(f"{len(missing)} forwards are not in the kernel")

    def wipe(self) -> None:
        """Take all rules away; what a running daemon keeps ready stays ready."""
        if self.legacy:
            # To remove them would end the helpers that write to iptables-legacy.
            _run("iptables-legacy-restore", stdin=self._blank)
        else:
            self.netfilter.remove()

    def close(self) -> None:
        """Take all rules away."""
        self.netfilter.remove()
        self.netfilter.close()


def apply(subject: Subject, directory: Path, size: int, runs: int, hook_runs: int) -> Seconds:
    """Everything from nothing, three ways in turn; the first turn warms up and is checked, and does not count."""
    told: Seconds = {"native": [], "native cpu": [], "hooks": []}
    for run in range(runs + 1):
        config = _configuration(directory, size, run)
        subject.forget()
        cost = subject.reconcile(config, subject.inventory)
        if not run:
            subject.check(config)
        subject.wipe()
        argv, cpu = subject.native(config, directory / "rules"), _cpu_seconds()
        native = seconds_of(argv)
        cpu = _cpu_seconds() - cpu
        if not run:
            subject.check(config)
        subject.wipe()
        hooks = [_as_hooks_do(size)] if 0 < run <= hook_runs else []
        if run:
            _add(told, _ours(cost), {"native": [native], "native cpu": [cpu], "hooks": hooks})
    return told


def change(subject: Subject, directory: Path, size: int, runs: int) -> Seconds:
    """The last domain starts, again and again; the first time does not count."""
    config = _configuration(directory, size, 0)
    stopped = _without_last(subject.inventory)
    told: Seconds = {}
    for run in range(runs + 1):
        # Twice: what is gone is held at first.
        subject.reconcile(config, stopped)
        subject.reconcile(config, stopped)
        cost = subject.reconcile(config, subject.inventory)
        if run:
            _add(told, _ours(cost))
    return told


def report(subject: Subject, directory: Path, size: int, runs: int) -> Seconds:
    """The processor time of one line for each forward, from what was mended to the last byte; the first warms up."""
    config = _configuration(directory, size, 0)
    desired = desired_state(config, subject.inventory)
    mended, known = ApplyResult(mended=desired.exposures), causes.Known((Reason(ReasonKind.LIBVIRT, _URI),))
    told: Seconds = {"report": []}
    for run in range(runs + 1):
        logging.getLogger().handlers.clear()  # each has a thread, which ends with the lines
        begun = _cpu_seconds()
        with memory.collecting_later(), journal.lines_written():
            for change in causes.changes(None, desired, mended, known):
                lines.exposure(change.action, change.exposure, change.cause)
        if run:
            told["report"].append(_cpu_seconds() - begun)
    return told


def _ours(cost: Cost) -> Seconds:
    return {name: [seconds] for name, seconds in asdict(cost).items()}


def _add(told: Seconds, *parts: Seconds) -> None:
    for part in parts:
        for name, values in part.items():
            told.setdefault(name, []).extend(values)


def _cpu_seconds() -> float:
    """Of this process and all it waited for; helpers that still run are not among them."""
    every = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in every)


def _cpu_of_helpers() -> float:
    """Of those that run now; in steps of a hundredth of a second."""
    return cpu_seconds_below(os.getpid())


def _configuration(directory: Path, size: int, run: int) -> Config:
    path = directory / "portfwd.toml"
    path.write_text(config(size, first=FIRST_PORT + run * size % _PORTS), encoding="utf-8")
    return configuration.load(path)


def _without_last(inventory: Inventory) -> Inventory:
    domains = (
        replace(domain, running=False, interfaces=()) if domain.name == LAST else domain for domain in inventory.domains
    )
    return replace(inventory, domains=tuple(domains))


def _as_hooks_do(size: int) -> float:
    with _hook_chains():
        argvs = commands("iptables", hook_forwards(size))
        begun = time.monotonic()
        for argv in argvs:
            seconds_of(argv)
        return time.monotonic() - begun


@contextmanager
def _hook_chains() -> Iterator[None]:
    _run("iptables-restore", "--noflush", stdin=chains())
    try:
        yield
    finally:
        _run("iptables-restore", "--noflush", stdin=no_chains())


def _run(*argv: str, stdin: str = "") -> str:
    done = subprocess.run(argv, input=stdin, text=True, check=True, stdout=subprocess.PIPE)  # noqa: S603  words of ours
    return done.stdout


_WORK: Final[dict[str, Callable[..., Seconds]]] = {"apply": apply, "change": change, "report": report}


def main() -> None:
    """Read what to do, do it, and print the seconds."""
    # Beside the main thread, as in the daemon: on that one, asyncio cares for signals at each call of pyroute2.
    with journal.lines_written(), ThreadPoolExecutor(1) as apart:
        apart.submit(_work).result()


def _work() -> None:
    what, *numbers = sys.argv[1:]
    subject = Subject(asyncio.run(take_inventory([_URI])))
    try:
        with tempfile.TemporaryDirectory() as directory:
            told = _WORK[what](subject, Path(directory), *map(int, numbers))
            print(json.dumps(told), flush=True)  # noqa: T201  the parent reads it
    finally:
        subject.close()


if __name__ == "__main__":
    main()
