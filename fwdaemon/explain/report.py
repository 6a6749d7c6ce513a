"""What is told in the end: the steps of the walk, and one sentence. Pure."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from fwdaemon.explain.evaluation import Passage

# Around a command, since no name from outside can hold these: `fwdaemon.naming.shown` makes them visible.
_BEGIN, _END = "\x02", "\x03"
_COMMAND: Final = re.compile(f"{_BEGIN}(.*?){_END}")
_BACKQUOTED: Final = str.maketrans({"`": "'", _BEGIN: "`", _END: "`"})


def command(text: str) -> str:
    """Set a command off from the sentence it stands in."""
    return f"{_BEGIN}{text}{_END}" if text.isprintable() else "a command with a name in it that cannot be typed"


class Standing(StrEnum):
    """How a step stands."""

    FINE = "ok"
    WRONG = "no"
    UNKNOWN = "unknown"


class Cause(StrEnum):
    """Why a connection fails; the values are stable, for programs that read `--json`."""

    CONFIGURATION_REFUSED = "configuration-refused"
    LIBVIRT_UNREACHABLE = "libvirt-unreachable"
    NOT_OUR_ADDRESS = "not-our-address"
    ONLY_FROM_HOST = "only-from-host"
    UNCLAIMED = "unclaimed"
    LOCALHOST_OFF = "localhost-off"
    LOCALHOST_IMPOSSIBLE = "localhost-impossible"
    SOURCE_REFUSED = "source-refused"
    WRONG_INTERFACE = "wrong-interface"
    NO_SUCH_DOMAIN = "no-such-domain"
    AMBIGUOUS_DOMAIN = "ambiguous-domain"
    DOMAIN_NOT_RUNNING = "domain-not-running"
    NO_SUCH_NETWORK = "no-such-network"
    NETWORK_NOT_ACTIVE = "network-not-active"
    WRONG_FAMILY = "wrong-family"
    NO_ADDRESS = "no-address"
    ADDRESS_REFUSED = "address-refused"
    UNPLUGGED = "unplugged"
    REVERSE_PATH = "reverse-path"
    REFUSED_EARLY = "refused-early"
    UNTRACKED = "untracked"
    TAKEN = "taken"
    DAEMON_NOT_RUNNING = "daemon-not-running"
    NOT_LOADED = "not-loaded"
    BRIDGE_DOWN = "bridge-down"
    ROUTE_ASTRAY = "route-astray"
    FORWARDING_OFF = "forwarding-off"
    GATE_SHUT = "gate-shut"
    REFUSED = "refused"
    HAIRPIN_OFF = "hairpin-off"
    GUEST_REFUSES = "guest-refuses"
    GUEST_SILENT = "guest-silent"
    GUEST_UNREACHABLE = "guest-unreachable"


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the packet. `cause` and `remedy`, what to do in one sentence, are there where it is wrong.

    `passage` is there for a base chain.
    """

    name: str
    standing: Standing
    text: str
    cause: Cause | None = None
    remedy: str = ""
    passage: Passage | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """The whole answer: what was asked in `title`, the steps in the packet's order, and what works if all is well."""

    title: str
    steps: Sequence[Step]
    success: str

    @property
    def failure(self) -> Step | None:
        """The first step that is certainly wrong."""
        return next((step for step in self.steps if step.standing is Standing.WRONG), None)

    @property
    def works(self) -> bool:
        """Whether nothing was found that stops the connection."""
        return self.failure is None

    @property
    def sentence(self) -> str:
        """The last word: what to do, or that it works. Commands, and nothing else, stand in backquotes."""
        return self._last_word().translate(_BACKQUOTED)

    @property
    def commands(self) -> list[str]:
        """The commands of the sentence, in order."""
        return _COMMAND.findall(self._last_word())

    def _last_word(self) -> str:
        if self.failure is not None:
            return self.failure.remedy
        doubts = [step for step in self.steps if step.standing is Standing.UNKNOWN]
        if not doubts:
            return f"It works: {self.success}."
        remedy = next((step.remedy for step in doubts if step.remedy), "see the lines above")
        return f"As far as can be told it works: {self.success}; but {remedy}."


def fine(name: str, text: str) -> Step:
    """Give a step that is as it should be."""
    return Step(name, Standing.FINE, text)


def wrong(name: str, text: str, cause: Cause, remedy: str) -> Step:
    """Give a step at which the connection certainly fails."""
    return Step(name, Standing.WRONG, text, cause, remedy)


def unknown(name: str, text: str, remedy: str = "") -> Step:
    """Give a step that cannot be judged; `remedy` is half a sentence."""
    return Step(name, Standing.UNKNOWN, text, None, remedy)
