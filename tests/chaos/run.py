"""One run: a host, a seed, so many rounds; and where it fails, the shortest sequence that still does."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from random import Random

import libvirt

from tests.chaos.actions import Action, draw
from tests.chaos.figures import Figures, versions
from tests.chaos.hostile import hostile_senders
from tests.chaos.rounds import Rounds, WrongError
from tests.chaos.stage import Stage
from tests.lab.command import LabError
from tests.lab.release import Flavour

Say = Callable[[str], None]
_TOLD_EVERY = 50


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a run: `failure` is empty where all was right, `played` what was done, `versions` on what."""

    figures: Figures
    played: list[Action]
    failure: str
    versions: str


def drawn(flavour: Flavour, rounds: int, seed: int, say: Say, *, first: Iterable[Action] = ()) -> Result:
    """Draw and play so many actions, after the first ones."""
    return _run(flavour, seed, lambda stage, random: chain(first, _draw(stage, random, rounds)), say)


def replayed(flavour: Flavour, seed: int, actions: Iterable[Action], say: Say) -> Result:
    """Play these actions."""
    return _run(flavour, seed, lambda _stage, _random: iter(list(actions)), say)


def _draw(stage: Stage, random: Random, rounds: int) -> Iterator[Action]:
    for _ in range(rounds):
        yield draw(random, stage.world, stage.host.flavour.firewall)


def _run(flavour: Flavour, seed: int, actions: Callable[[Stage, Random], Iterator[Action]], say: Say) -> Result:
    with Stage.set_up(flavour) as stage, ExitStack() as at_end:
        began, on = time.monotonic(), versions(stage.host)
        playing = Rounds(stage, Random(f"probes {seed}"), at_end)  # noqa: S311  to be repeated, not to be secret
        failure = ""
        try:
            with hostile_senders(stage):
                _play_all(playing, actions(stage, Random(seed)), say)  # noqa: S311  the same
        except (WrongError, LabError, OSError, libvirt.libvirtError) as error:
            failure = f"{type(error).__name__}: {error}\nthe daemon said last:\n{stage.autopsy()}"
        figures = playing.figures
        figures.seconds, figures.failures = time.monotonic() - began, int(bool(failure))
        figures.bytes, figures.datagrams = stage.steady.volume()
        figures.lost = bool(stage.steady.losses())
        return Result(figures, playing.played, failure, on)


def _play_all(playing: Rounds, actions: Iterable[Action], say: Say) -> None:
    for action in actions:
        playing.play(action)
        if playing.figures.rounds % _TOLD_EVERY == 0:
            say(f"{playing.figures.rounds} rounds, {playing.figures.probes} probes, last: {action}")


def shortened(flavour: Flavour, seed: int, actions: list[Action], seconds: float, say: Say) -> list[Action]:
    """Leave out pieces, halves first, as long as it still fails; give up after so many seconds."""
    end, size = time.monotonic() + seconds, len(actions) // 2
    while size and time.monotonic() < end:
        start = 0
        while start < len(actions) and time.monotonic() < end:
            fewer = actions[:start] + actions[start + size :]
            if fewer and replayed(flavour, seed, fewer, lambda _: None).failure:
                actions = fewer
                say(f"it still fails with {len(actions)} actions")
            else:
                start += size
        size //= 2
    return actions
