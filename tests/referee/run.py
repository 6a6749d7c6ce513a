"""One run: in each round something goes wrong while the guest migrates, and then all has to be well again."""

import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import libvirt

from tests.chaos.figures import versions
from tests.host.conftest import Conversation
from tests.lab.command import LabError
from tests.lab.place import wait_until
from tests.lab.qemu import ECHO_PORT
from tests.lab.release import Flavour
from tests.referee.faults import FAULTS
from tests.referee.figures import Figures, Round
from tests.referee.stage import COPIES, PUBLIC, Stage, staged
from tests.referee.watch import Referee

Say = Callable[[str], None]
_PHASES = ("before", "copying", "after")
_LASTS_S = (0.0, 2.0, 8.0, 20.0)
_BACK_WITHIN_S = 120.0
_COPIED_WITHIN_S = 120.0
# One that was ended is recognised by silence alone.
_STREAM_PATIENCE_S = 15.0
_BANDWIDTH = 24  # MiB/s: the copy takes some seconds


@dataclass(frozen=True, slots=True)
class Result:
    """What came of it, and on what."""

    figures: Figures
    versions: str


def refereed(flavour: Flavour, rounds: int, seed: int, say: Say, only: str = "") -> Result:
    """Play so many rounds."""
    figures, lot, began = Figures(rounds), random.Random(seed), time.monotonic()  # noqa: S311  no secret
    with staged(flavour) as stage:
        told = versions(stage.hosts[0])
        with Referee(stage, PUBLIC) as referee:
            for number in range(rounds):
                try:
                    figures.rounds.append(_Play(stage, referee, lot, only).round())
                except (LabError, libvirt.libvirtError) as error:
                    figures.failures.append(f"round {number + 1}: {error}")
                    break
                say(f"{number + 1}: {figures.rounds[-1]}")
            seen = referee.seen
            figures.looks, figures.held_twice, figures.answered_twice = seen.looks, seen.held_twice, seen.answered_twice
            if not referee.is_alive:
                figures.failures.append("the referee did not look to the end")
    figures.seconds = time.monotonic() - began
    return Result(figures, told)


class _Play:
    """One round."""

    def __init__(self, stage: Stage, referee: Referee, lot: random.Random, only: str) -> None:
        self._stage, self._referee, self._lot = stage, referee, lot
        self._fault = only or lot.choice(list(FAULTS))
        self._phase, self._lasts = lot.choice(_PHASES), lot.choice(_LASTS_S)
        (self._at,) = stage.runs_on()
        self._to = lot.choice([number for number in range(len(stage.hosts)) if number != self._at])
        self._struck = lot.choice([self._at, self._to])
        self._cancels = lot.random() < 0.15
        self._errors: list[libvirt.libvirtError] = []

    def round(self) -> Round:
        """Play it."""
        stage = self._stage
        talk = Conversation(stage.hosts[0].outside, PUBLIC, ECHO_PORT, _STREAM_PATIENCE_S)
        gaps = len(self._referee.seen.gaps)
        try:
            self._strike_and_move()
            began = time.monotonic()
            wait_until(self._is_well, self._ill, timeout=_BACK_WITHIN_S, interval=0.05)
            back = time.monotonic() - began
            went_on = _goes_on(talk)
        finally:
            talk.close()
        (at,) = stage.runs_on()
        without = max(self._referee.seen.gaps[gaps:], default=0.0)
        phase = f"{self._phase}, {self._lasts:g} s{', cancelled' if self._cancels else ''}"
        return Round(self._fault, phase, at == self._to, back, without, went_on)

    def _strike_and_move(self) -> None:
        """Have the fault begin in its phase of the migration, and end after a while."""
        begin = FAULTS[self._fault]
        moving = threading.Thread(target=self._migrate, daemon=True)
        end = begin(self._stage, self._struck, self._lot) if self._phase == "before" else None
        try:
            moving.start()
            if self._phase == "copying":
                with suppress(LabError):
                    wait_until(self._is_copying, "it is being copied", timeout=10)
                end = begin(self._stage, self._struck, self._lot)
            if self._cancels:
                with suppress(libvirt.libvirtError):
                    self._stage.guest_on(self._at).abort_job()
            if self._phase == "after":
                moving.join(_COPIED_WITHIN_S)
                end = begin(self._stage, self._struck, self._lot)
            time.sleep(self._lasts)
        finally:
            if end is not None:
                end()
        moving.join(_COPIED_WITHIN_S)
        if moving.is_alive():
            raise LabError("the migration did not end")

    def _is_copying(self) -> bool:
        with suppress(libvirt.libvirtError):
            return self._stage.guest_on(self._at).is_being_copied()
        return False

    def _migrate(self) -> None:
        try:
            self._stage.guest_on(self._at).migrate(self._stage.hosts[self._to], COPIES[self._to], bandwidth=_BANDWIDTH)
        except libvirt.libvirtError as error:
            self._errors.append(error)

    def _is_well(self) -> bool:
        """Whether the guest is reached, by the host it runs on, and all hosts have the table."""
        stage = self._stage
        if len(stage.runs_on()) != 1 or self._referee.seen.holder != stage.runs_on()[0] or not stage.answers():
            return False
        told = [host.portfwd("status", "--json", check=False).stdout for host in stage.hosts]
        return all('"etcd:guest:' in text and '"answering": 3' in text for text in told)

    def _ill(self) -> str:
        holder = self._referee.seen.holder
        what = f"{self._fault} ({self._phase}, {self._lasts:g} s) on {self._struck}, {self._at} to {self._to}"
        logs = "\n".join(
            f"host {number}: {daemon.process.text()[-3000:]}"
            for number, daemon in self._stage.daemons.items()
            if daemon is not None
        )
        return f"{what}: guest on {self._stage.runs_on()}, address on {holder}, {self._errors}\n{logs}"


def _goes_on(talk: Conversation) -> bool:
    try:
        return talk.goes_on()
    except OSError:
        return False
