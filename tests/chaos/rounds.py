"""Rounds: do an action, wait until all is settled, compare the whole truth."""

import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from random import Random

from tests.chaos import compare, probes
from tests.chaos.actions import Action, is_possible
from tests.chaos.compare import Comparison
from tests.chaos.faults import Faults
from tests.chaos.figures import Figures
from tests.chaos.foreign import changed_lines, left_by, lines_of
from tests.chaos.intruder import FORGERIES, OF_NEIGHBOUR, Intruder, Knock, knocks
from tests.chaos.limits import Limits, is_online
from tests.chaos.listing import Listing
from tests.chaos.resources import beyond, held
from tests.chaos.rule_faults import RULE_FAULTS, RuleFault
from tests.chaos.stage import Stage
from tests.lab.command import LabError

# No event is lost as long as this is far below the daemon's `resync`; a slow machine must not fail for being slow.
_SETTLED_WITHIN_S = 60.0
_ANSWERED_WITHIN_S = 3.0
_INTERVAL_S = 0.05
_STILL_S = 1.0
# The thread that looks for guests whose address is not known.
_BEGUN_LATER = 1
# Limits are asked about each so many rounds.
_LIMITS_EACH = 4
# After these, libvirt has written its own rules anew; a changed reservation is one of its reasons.
_LIBVIRT_WRITES = ("network-", "libvirtd-", "readdress a")

# What takes all of ours away, and ends the connections that came through it.
_REMOVING = {"daemon-remove", "flush"}
# What ends the connections that carry our label, and not those that guests with a public address opened.
_RELABELLING = {"relabel"}


class WrongError(AssertionError):
    """Something is not as it must be."""


class Rounds:
    """Plays actions on one stage. `played` are those done so far, `figures` what came of them."""

    def __init__(self, stage: Stage, random: Random, at_end: ExitStack) -> None:
        self._stage, self._random = stage, random
        self._world = stage.world
        self._faults = Faults(stage)
        self.figures = Figures()
        self.played: list[Action] = []
        self._unsettled: list[Action] = []
        listing = Listing.of(stage.host)
        self._comparison = Comparison(stage.host.flavour.firewall, listing)
        self._foreign = listing.foreign
        self._wait(self._wrong_rules)
        self._held = self._held_at_rest()
        self._limits = Limits(stage)
        self._intruder = Intruder(stage, at_end)

    def play(self, action: Action) -> None:
        """Do an action, if it is possible now, and see that what must follow does.

        Raises:
            WrongError: it does not.

        """
        if not is_possible(action, self._world, self._stage.host.flavour.firewall):
            return
        self._check_unspoilt()
        self.played.append(action)
        self._do(action, RULE_FAULTS[action.words[0]] if action.kind == "rules" else None)
        self._check_running()
        if lost := self._stage.steady.losses():
            raise WrongError("\n".join(lost))

    def _do(self, action: Action, fault: RuleFault | None) -> None:
        answers, listing = probes.answers(self._world), Listing.of(self._stage.host)
        if (fault and fault.rests) or action.kind in _REMOVING | _RELABELLING:
            self._stage.steady.rest()
        self._faults.do(action)
        self._stage.steady.over |= action.kind in _RELABELLING
        self._count(action)
        self._settle()
        if action.kind == "daemon-stop" and (wrong := self._wrong_rules()):
            raise WrongError("it was not kept as it was:\n" + "\n".join(wrong))
        if action.kind in _REMOVING and (left := self._left()):
            raise WrongError("\n".join(left))
        if fault and fault.undo:
            if not fault.rests:
                self._check_online()
            self._undo(fault)
        if fault and fault.wipes:
            self._repair(left_by(fault.wipes, listing))
        elif str(action).startswith(_LIBVIRT_WRITES):
            self._wait(self._wrong_foreign)
        elif wrong := changed_lines(self._foreign.splitlines(), self._listed_foreign().splitlines()):
            raise WrongError("rules of others changed:\n" + "\n".join(wrong))
        self._foreign = self._listed_foreign()
        self._probe(answers)
        self._intrude()

    def _left(self) -> list[str]:
        """Say what is left where all of ours is to be gone, with the connections that came through it."""
        listing = Listing.of(self._stage.host)
        rules = [f"left: {line}" for line in [*listing.own.splitlines(), *listing["ipsets"].splitlines()] if line]
        held = [f"left: {address}" for address in compare.held_addresses(listing)]
        places = (probe for probe in probes.every_probe(self._world) if probe.origin == "outside")
        tried = [Knock(place.origin, place.source, place.protocol, place.address, place.port) for place in places]
        return [*rules, *held, *self._stage.steady.end(), *self._intruder.answered(dict.fromkeys(tried))]

    def _count(self, action: Action) -> None:
        self.figures.rounds += 1
        self.figures.counts[action.label] += 1
        self._unsettled.append(action)

    def _check_unspoilt(self) -> None:
        """What was right after the last round must still be: a late answer to it could have spoilt it."""
        if self._world.can_settle and not self._unsettled and (wrong := self._wrong_rules()):
            raise WrongError("it was right after the last round, and is no more:\n" + "\n".join(wrong))

    def _settle(self) -> None:
        """Wait until the daemon has done all it has to do, if it can; what it cannot do must not end it."""
        self._check_running()
        if self._world.can_settle:
            seconds = self._wait(self._wrong_rules)
            self._world.removed = False
            for action in self._unsettled:
                self.figures.settled(action, seconds)
            self._unsettled = []
            # What waits for the lock does so in a process.
            if "lock" not in self._world.short:
                self._wait(self._leaks)

    def _check_running(self) -> None:
        if self._world.daemon != "down" and not self._stage.daemon.process.running:
            raise WrongError("the daemon ended")

    def _undo(self, fault: RuleFault) -> None:
        """Take a foreign rule away, which must still be there."""
        try:
            self._faults.run(fault.undo)
        except LabError as error:
            raise WrongError(f"somebody else's rule was touched: {error}") from error
        self._settle()

    def _repair(self, left: str) -> None:
        """See that a wipe took away only what it takes away, and bring that back."""
        if wrong := changed_lines(left.splitlines(), self._listed_foreign().splitlines()):
            raise WrongError("rules of others changed after a wipe:\n" + "\n".join(wrong))
        # While libvirt writes its rules anew, its refusals are ahead of what lets connections through, and of the gate.
        self._stage.steady.rest()
        self._faults.repair()
        self._wait(self._wrong_foreign)
        self._settle()

    def _probe(self, before: dict[probes.Probe, str | None]) -> None:
        if not self._world.can_settle:
            return
        for probe in probes.drawn(self._random, before, self._world):
            self.figures.probes += 1
            self._check(probe)
        self._check_online()
        if self.figures.rounds % _LIMITS_EACH == 0 and (wrong := self._limits.wrong()):
            raise WrongError("\n".join(wrong))
        self._stage.steady.go_on()

    def _check_online(self) -> None:
        """See that what others refuse by their policy keeps no guest from what libvirt lets it reach."""
        if self._world.can_settle and not is_online(self._stage):
            raise WrongError("a guest reaches nothing outside")

    def _check(self, probe: probes.Probe) -> None:
        wanted, deadline = probes.expected(self._world, probe), time.monotonic() + _ANSWERED_WITHIN_S
        while (answer := probes.ask(self._stage, probe)) != wanted:
            # The first packet to an address that was away may be lost while it is looked for. No one else may answer.
            if answer or time.monotonic() > deadline:
                raise WrongError(f"{probe}: {answer or 'nobody'} answers, not {wanted or 'nobody'}")

    def _intrude(self) -> None:
        """See that nothing gets where it must not, and nothing forged while no fault has changed the rules."""
        # A daemon that is short of something reads no file, and puts back no rule that was taken away.
        denies = not any(action.kind in {"set-file", "rules"} for action in self._unsettled)
        found = self._intruder.answered(knocks(self._world, denies=denies))
        if not any(action.kind == "rules" for action in self._unsettled):
            forgeries = FORGERIES if self._world.removed else (*FORGERIES, OF_NEIGHBOUR)
            found += self._intruder.arrived(forgeries, open_way=self._world.can_settle)
        self.figures.tries = self._intruder.tries
        if found:
            raise WrongError("\n".join(found))

    def _wrong_rules(self) -> list[str]:
        return self._comparison.differences(self._world, Listing.of(self._stage.host))

    def _listed_foreign(self) -> str:
        return Listing.of(self._stage.host).foreign

    def _wrong_foreign(self) -> list[str]:
        wanted = self._stage.references[self._world.active_networks]
        return [f"rules of others: {line}" for line in changed_lines(wanted, lines_of(self._listed_foreign()))]

    def _leaks(self) -> list[str]:
        return beyond(held(self._stage.host, self._stage.daemon.pid), self._held)

    def _held_at_rest(self) -> Counter[str]:
        """What the daemon holds when it does nothing: the same twice, a moment apart.

        It begins some of its threads when they first have something to do, as here and with the first silent guest.
        """
        self._stage.daemon.reload()
        self._stage.host.run(self._stage.host.python, "-m", "fwdaemon", "status")
        while True:
            first = held(self._stage.host, self._stage.daemon.pid)
            time.sleep(_STILL_S)
            if held(self._stage.host, self._stage.daemon.pid) == first:
                return first + Counter(threads=_BEGUN_LATER)

    def _read(self, wrong: Callable[[], list[str]]) -> list[str]:
        """Ask what is wrong, and take what the daemon reported to systemd: it waits until that is read."""
        if self._world.daemon != "down":
            self._stage.daemon.told()
        return wrong()

    def _wait(self, wrong: Callable[[], list[str]]) -> float:
        """Wait until nothing is wrong; the seconds it took."""
        began = time.monotonic()
        while found := self._read(wrong):
            self._check_running()
            if time.monotonic() - began > _SETTLED_WITHIN_S:
                raise WrongError(f"after {_SETTLED_WITHIN_S:g} s still wrong:\n" + "\n".join(found))
            time.sleep(_INTERVAL_S)
        return time.monotonic() - began
