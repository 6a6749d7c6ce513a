"""Programs to run on the host, as data."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from tests.chaos.listing import Listing

FAMILIES = ("ip", "ip6")


@dataclass(frozen=True, slots=True)
class Command:
    """A program to run, with its input."""

    argv: tuple[str, ...]
    stdin: str = ""


Commands = list[Command]
# Draws what to run from what is there; nothing where there is nothing to draw from.
Make = Callable[[Random, Listing], Commands]


def words(text: str) -> Command:
    """Split a command at its spaces."""
    return Command(tuple(text.split()))


def always(*commands: Command) -> Make:
    """Run the same whatever is there."""
    return lambda _random, _listing: list(commands)
