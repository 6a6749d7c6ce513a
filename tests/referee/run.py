"""One run: in each round something goes wrong while a guest moves, and then all has to be well again."""

import itertools
import json
import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Final

import libvirt

from tests.chaos.figures import versions
from tests.host.conftest import Conversation
from tests.lab.command import LabError
from tests.lab.place import wait_until
from tests.lab.qemu import ECHO_PORT
from tests.lab.release import Flavour
from tests.referee.faults import FAULTS, LOST, SOURCE_STOPPED, STOPPED, TARGET_STOPPED, End
from tests.referee.figures import ELSEWHERE, PHASES, Figures, Round
from tests.referee.stage import COPIES, ENTRIES, PUBLIC, STEADY, VM, WEB, Stage, staged
from tests.referee.watch import Referee, Seen

Say = Callable[[str], None]
_LASTS_S: Final = (0.0, 1.0, 1.0, 4.0, 14.0)
# Longer than a lease: another host takes over meanwhile from one that is dead or stopped, or cut off from etcd.
_TAKES_OVER_S: Final = 20.0
_STOPPED_S: Final = 30.0
_BACK_WITHIN_S: Final = 60.0
_COPIED_WITHIN_S: Final = 120.0
# One that was ended is recognised by silence alone.
_STREAM_PATIENCE_S: Final = 15.0
_MOST_FAILURES: Final = 5
_BANDWIDTH: Final = 32  # MiB/s: the copy takes some seconds


@dataclass(frozen=True, slots=True)
class Length:
    """How much: rounds, none of which begins after so many seconds, in these phases; with `only`, of this fault."""

    rounds: int
    seconds: float = inf
    only: str = ""
    phases: tuple[str, ...] = (*PHASES, ELSEWHERE)

    @property
    def guests(self) -> tuple[str, ...]:
        """Those that move in one of these phases."""
        return (WEB,) if self.phases == (ELSEWHERE,) else (VM, WEB)


@dataclass(frozen=True, slots=True)
class Result:
    """What came of it, and on what."""

    figures: Figures
    versions: str


def refereed(flavour: Flavour, length: Length, seed: int, say: Say) -> Result:
    """Play so many rounds, or as many as can be begun in that time."""
    figures, began, told = Figures(length.rounds), time.monotonic(), ""
    lot = random.Random(seed)  # noqa: S311  no secret
    drawn = enumerate(itertools.islice(draws(lot, length), length.rounds))
    over = False
    # What went wrong in one round must not be found again in the next.
    while not over and len(figures.failures) < _MOST_FAILURES:
        with (
            staged(flavour, length.guests) as stage,
            Referee(stage, [PUBLIC[name][0] for name in stage.guests]) as referee,
        ):
            told = f"{versions(stage.hosts[0])}; {stage.etcd[0].version}"
            over = _play(_Table(stage, referee, lot), drawn, figures, began + length.seconds, say)
            figures.count(referee.looks, referee.seen.values())
            figures.watched += referee.watched
            figures.gap = max(figures.gap, referee.gap)
            if not referee.is_alive:
                figures.failures.append("the referee did not look to the end")
    figures.seconds = time.monotonic() - began
    return Result(figures, told)


@dataclass(frozen=True, slots=True)
class _Table:
    """Where rounds are played, and who looks."""

    stage: Stage
    referee: Referee
    lot: random.Random


def _play(
    table: _Table, draws: Iterator[tuple[int, tuple[str, str]]], figures: Figures, until: float, say: Say
) -> bool:
    """Play rounds on one stage until one fails; tell whether they are over."""
    for number, drawn in draws:
        if time.monotonic() > until:
            figures.asked = number
            return True
        try:
            figures.rounds.append(_Play(table, drawn, number).round())
        except (LabError, libvirt.libvirtError, OSError, subprocess.SubprocessError) as error:
            figures.failures.append(f"round {number + 1}, {', '.join(drawn)}: {str(error).splitlines()[0]}")
            say(f"{number + 1}: {drawn} FAILED: {error}")
            return False
        say(f"{number + 1}: {figures.rounds[-1]}")
    return True


def draws(lot: random.Random, length: Length) -> Iterator[tuple[str, str]]:
    """Draw each fault in each phase before any is drawn again.

    A host that is stopped starts no guest, so where one is started elsewhere, that host is not.
    """
    faults = [length.only] if length.only else FAULTS
    deck = [drawn for drawn in itertools.product(faults, length.phases) if drawn != (TARGET_STOPPED, ELSEWHERE)]
    while deck:
        lot.shuffle(deck)
        yield from deck


class _Play:
    """One round."""

    def __init__(self, table: _Table, drawn: tuple[str, str], number: int) -> None:
        stage, lot = table.stage, table.lot
        self._stage, self._referee, self._lot, self._number = stage, table.referee, lot, number
        self._fault, self._phase = drawn
        self._name = WEB if self._phase == ELSEWHERE else VM
        (self._at,) = stage.runs_on(self._name)
        self._to = lot.choice([number for number in range(len(stage.hosts)) if number != self._at])
        self._struck = self._whom_to_strike()
        self._lasts = _TAKES_OVER_S if self._phase == ELSEWHERE else lot.choice(_LASTS_S)
        if self._fault in STOPPED:
            self._lasts = _STOPPED_S
        self._errors: list[libvirt.libvirtError] = []
        self._lost, self._written, self._over_at, self._struck_at = 0, "", 0.0, 0.0

    def _whom_to_strike(self) -> int:
        if self._phase == ELSEWHERE or self._fault == SOURCE_STOPPED:
            return self._at
        return self._to if self._fault == TARGET_STOPPED else self._lot.choice([self._at, self._to])

    def round(self) -> Round:
        """Play it, and wait until all is well."""
        self._set_up()
        seen, began = self._referee.seen[PUBLIC[self._name][0]], time.monotonic()
        talk = None if self._phase == ELSEWHERE else self._talk()
        try:
            ended = self._start_elsewhere() if self._phase == ELSEWHERE else self._strike_and_move()
            wait_until(self._is_well, self._ill, timeout=_BACK_WITHIN_S, interval=0.05)
            back = time.monotonic() - ended
            went_on = None if talk is None else _goes_on(talk)
        finally:
            if talk is not None:
                talk.close()
        moved = self._stage.runs_on(self._name) == [self._to]
        taken = self._taken_over(seen) if self._phase == ELSEWHERE else None
        return Round(self._fault, self._phase, self._lasts, moved, back, seen.unheld(began), taken, went_on, self._lost)

    def _taken_over(self, seen: Seen) -> float | None:
        """Give after how many seconds of the fault the other host had the address; `None` if it did not then."""
        taken = seen.taken(self._to, self._struck_at)
        if taken is not None and taken < self._lasts:
            return taken
        if self._fault in LOST:
            raise LabError(f"no other host took over: {taken}")
        return None

    def _talk(self) -> Conversation:
        return Conversation(self._stage.hosts[0].outside, PUBLIC[VM][0], ECHO_PORT, _STREAM_PATIENCE_S)

    def _set_up(self) -> None:
        """Change the table, which all hosts have to have in the end."""
        self._write(f"{self._number} began")

    def _write(self, text: str) -> None:
        """Write an entry that says nothing; one of which etcd does not say that it has it may be there or not."""
        with suppress(subprocess.CalledProcessError):
            self._stage.ctl("put", f"{ENTRIES}/round", f"# {text}")
            self._written = text

    def _begin(self) -> End:
        end = FAULTS[self._fault](self._stage, self._struck, self._lot)
        self._struck_at = time.monotonic()
        self._over_at = time.monotonic() + self._lasts
        if self._phase != ELSEWHERE and self._lasts < 1:
            return end
        if self._fault != "older state restored":
            self._write(f"{self._number} went wrong")
        return end

    def _await_end(self) -> None:
        time.sleep(max(0.0, self._over_at - time.monotonic()))

    # --- a migration ---------------------------------------------------------------------------------------------

    def _strike_and_move(self) -> float:
        """Have the fault begin in its phase of the migration, and end after a while; give when both were over."""
        moving = threading.Thread(target=self._migrate, daemon=True)
        end = self._begin() if self._phase == "before" else None
        try:
            moving.start()
            if end is None:
                self._await_phase(moving)
                end = self._begin()
            if self._phase == "cancelled":
                # Where that libvirtd is stopped, it waits.
                threading.Thread(target=self._abort, daemon=True).start()
            self._await_end()
            self._look_at_tables()
        finally:
            if end is not None:
                end()
        moving.join(_COPIED_WITHIN_S)
        if moving.is_alive():
            raise LabError("the migration did not end")
        self._resume()
        return time.monotonic()

    def _await_phase(self, moving: threading.Thread) -> None:
        """Wait until the phase of the migration has come, or will not come any more."""
        if self._phase == "after":
            moving.join(_COPIED_WITHIN_S)
            return
        here = self._is_switching if self._phase == "switching" else self._is_copying
        wait_until(lambda: here() or not moving.is_alive(), "the phase has come", timeout=_COPIED_WITHIN_S)

    def _is_copying(self) -> bool:
        with suppress(libvirt.libvirtError):
            return self._stage.vm_on(self._at).is_being_copied()
        return False

    def _is_switching(self) -> bool:
        with suppress(libvirt.libvirtError):
            return self._stage.vm_on(self._at).state()[0] != libvirt.VIR_DOMAIN_RUNNING
        return True

    def _migrate(self) -> None:
        try:
            self._stage.vm_on(self._at).migrate(self._stage.hosts[self._to], COPIES[self._to], bandwidth=_BANDWIDTH)
        except libvirt.libvirtError as error:
            self._errors.append(error)

    def _abort(self) -> None:
        with suppress(libvirt.libvirtError):
            self._stage.vm_on(self._at).abort_job()

    def _resume(self) -> None:
        """Do what is left to the administrator, where a migration ended so that neither libvirt lets the guest run."""
        for host in (self._to, self._at):
            if not self._stage.runs_on(VM):
                with suppress(libvirt.libvirtError):
                    self._stage.vm_on(host).resume()

    # --- a guest that is started elsewhere -----------------------------------------------------------------------

    def _start_elsewhere(self) -> float:
        """Start it on another host, as if its own were dead, and stop it there once that has turned out to be alive."""
        end = self._begin()
        try:
            self._stage.web_on(self._to).start()
            self._await_end()
            self._look_at_tables()
        finally:
            end()
        self._stage.web_on(self._at).stop()
        return time.monotonic()

    # --- what has to be ------------------------------------------------------------------------------------------

    def _look_at_tables(self) -> None:
        """Count the hosts whose daemon can be asked and has lost the table."""
        for number, daemon in self._stage.daemons.items():
            if daemon is not None and daemon.process.running and not self._is_stopped(number):
                wait_until(partial(self._answers, number), f"the daemon of host {number} answers")
                self._lost += not self._has_table(number)

    def _is_stopped(self, number: int) -> bool:
        return number == self._struck and self._fault in STOPPED | {"daemon stopped"}

    def _has_table(self, number: int) -> bool:
        """Whether a daemon answers, and has the entries."""
        return f'"etcd:{STEADY}:' in self._told(number)

    def _answers(self, number: int) -> bool:
        return self._told(number) != ""

    def _told(self, number: int) -> str:
        return self._stage.hosts[number].portfwd("status", "--json", check=False).stdout

    def _is_well(self) -> bool:
        """Whether guests are reached, by the hosts they run on, and all hosts have the table as it is."""
        stage = self._stage
        for name in stage.guests:
            runs = stage.runs_on(name)
            if len(runs) != 1 or self._referee.seen[PUBLIC[name][0]].holder != runs[0] or not stage.answers(name):
                return False
        for number in range(len(stage.hosts)):
            if not self._has_table(number):
                return False
        return self._are_up_to_date()

    def _are_up_to_date(self) -> bool:
        """Whether all hosts have what etcd has, and etcd what it said it would."""
        told = self._stage.hosts[self._to].portfwd("fleet", "status", "--json", check=False).stdout
        if not told:
            return False
        answer = json.loads(told)
        if [host["behind"] for host in answer["hosts"]] != [False] * len(self._stage.hosts):
            return False
        with suppress(subprocess.CalledProcessError):
            return self._written in self._stage.ctl("get", "--print-value-only", f"{ENTRIES}/round")
        return False

    def _ill(self) -> str:
        stage = self._stage
        what = f"{self._fault} ({self._phase}, {self._lasts:g} s) on {self._struck}, {self._at} to {self._to}"
        where = {name: (stage.runs_on(name), self._referee.seen[PUBLIC[name][0]].holder) for name in stage.guests}
        silent = [name for name in stage.guests if not stage.answers(name)]
        known = stage.hosts[0].outside.run(["ip", "neighbour", "show"]).stdout
        told = stage.hosts[self._to].portfwd("fleet", "status", "--json", check=False)
        logs = "\n".join(
            f"host {number}: {daemon.process.text()[-3000:]}"
            for number, daemon in stage.daemons.items()
            if daemon is not None
        )
        seen = f"guests and addresses {where}, silent {silent}, {self._errors}\n{known}"
        return f"{what}: {seen}{told.stdout}{told.stderr}\n{logs}"


def _goes_on(talk: Conversation) -> bool:
    try:
        return talk.goes_on()
    except OSError:
        return False
