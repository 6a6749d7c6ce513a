"""What is asked of the host on the way, and what is said in the end: the steps of the walk, and one sentence. Pure."""

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final
from typing import Protocol as Interface

from fwdaemon.core.admission import Place, Ranges
from fwdaemon.core.inventory import HostAddress
from fwdaemon.core.state import Desired
from fwdaemon.core.types import Address, Family, Listener, Origin, Subnet
from fwdaemon.rulesets.evaluation import Passage
from fwdaemon.rulesets.packet import BaseChain, owners_of

# Marks in a sentence, since no name from outside can hold these: `fwdaemon.core.text.shown` makes them visible. Two
# stand around a command, and one for what puts a change of the configuration in force.
_BEGIN, _END, RELOAD = "\x02", "\x03", "\x05"
_COMMAND: Final = re.compile(f"{_BEGIN}(.*?){_END}")
_BACKQUOTED: Final = str.maketrans({"`": "'", _BEGIN: "`", _END: "`"})


def command(text: str) -> str:
    """Set a command off from the sentence it stands in."""
    return f"{_BEGIN}{text}{_END}" if text.isprintable() else "a command with a name in it that cannot be typed"


START_COMMAND: Final = command("systemctl enable --now kvm-portfwd")
_RELOAD_COMMAND: Final = command("kvm-portfwd reload")


class StepState(StrEnum):
    """How a step stands."""

    FINE = "ok"
    WRONG = "no"
    UNKNOWN = "unknown"


class Cause(StrEnum):
    """Why a connection fails; the values are stable, for programs that read `--json`."""

    CONFIGURATION_REFUSED = "configuration-refused"
    LIBVIRT_UNREACHABLE = "libvirt-unreachable"
    NOT_OUR_ADDRESS = "not-our-address"
    HELD_ELSEWHERE = "held-elsewhere"
    ONLY_FROM_HOST = "only-from-host"
    UNCLAIMED = "unclaimed"
    NOT_ALLOWED = "not-allowed"
    CLAIMED = "claimed"
    LOCALHOST_OFF = "localhost-off"
    SOURCE_REFUSED = "source-refused"
    WRONG_INTERFACE = "wrong-interface"
    NO_SUCH_DOMAIN = "no-such-domain"
    DOMAIN_NOT_RUNNING = "domain-not-running"
    NO_SUCH_NETWORK = "no-such-network"
    NETWORK_NOT_ACTIVE = "network-not-active"
    WRONG_FAMILY = "wrong-family"
    NO_ADDRESS = "no-address"
    ADDRESS_REFUSED = "address-refused"
    NOT_REACHED = "not-reached"
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
    CONFINED = "confined"
    GATE_SHUT = "gate-shut"
    ON_PURPOSE = "refused-on-purpose"
    REFUSED = "refused"
    DOCKERS_POLICY = "dockers-policy"
    HAIRPIN_OFF = "hairpin-off"
    GUEST_REFUSES = "guest-refuses"
    GUEST_SILENT = "guest-silent"
    GUEST_UNREACHABLE = "guest-unreachable"
    NO_WAY_BACK = "no-way-back"
    ANSWER_ASTRAY = "answer-astray"


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the packet. `cause` and `remedy`, what to do in one sentence, are there where it is wrong.

    Of one that is fine, `remedy` is what may be better, in half a sentence. `passage` is there for a base chain.
    """

    name: str
    state: StepState
    text: str
    cause: Cause | None = None
    remedy: str = ""
    passage: Passage | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """The whole answer: what was asked in `title`, the steps in the packet's order, and what works if all is well.

    `daemon_runs` decides what puts a change of the configuration in force; `entry` is the one that it is about.
    """

    title: str
    steps: Sequence[Step]
    success: str
    daemon_runs: bool = True
    entry: Origin | None = None

    @property
    def failure(self) -> Step | None:
        """The first step that is certainly wrong."""
        return next((step for step in self.steps if step.state is StepState.WRONG), None)

    @property
    def works(self) -> bool:
        """Whether nothing was found that stops the connection."""
        return self.failure is None

    @property
    def sentence(self) -> str:
        """The last word: what to do, or that it works. Commands, and nothing else, stand in backquotes."""
        return self._marked().translate(_BACKQUOTED)

    @property
    def commands(self) -> list[str]:
        """The commands of the sentence, in order."""
        return _COMMAND.findall(self._marked())

    def _marked(self) -> str:
        """Give the last word with commands set off."""
        in_force = _RELOAD_COMMAND if self.daemon_runs else START_COMMAND
        return self._last_word().translate({ord(RELOAD): f"run {in_force}"})

    def _last_word(self) -> str:
        if self.failure is not None:
            return self.failure.remedy
        doubts = [step for step in self.steps if step.state is StepState.UNKNOWN]
        aside = "".join(f"; {step.remedy}" for step in self.steps if step.remedy and step.state is StepState.FINE)
        if not doubts:
            return f"It works: {self.success}{aside}."
        remedy = next((step.remedy for step in doubts if step.remedy), "see the lines above")
        return f"As far as this host can tell, it works: {self.success}; but {remedy}{aside}."


def fine(name: str, text: str) -> Step:
    """Give a step that is as it should be."""
    return Step(name, StepState.FINE, text)


def wrong(name: str, text: str, cause: Cause, remedy: str) -> Step:
    """Give a step at which the connection certainly fails."""
    return Step(name, StepState.WRONG, text, cause, remedy)


def unknown(name: str, text: str, remedy: str = "") -> Step:
    """Give a step that cannot be judged; `remedy` is half a sentence."""
    return Step(name, StepState.UNKNOWN, text, None, remedy)


# Shows a report: for people, within 80 columns on a terminal, and for programs. Pure.
SCHEMA_VERSION: Final = 1

_WIDTH: Final = 80
_NAME_WIDTH: Final = 12
_SIGNS: Final = {StepState.FINE: "✓", StepState.WRONG: "✗", StepState.UNKNOWN: "?"}
_WORDS: Final = {StepState.FINE: "ok", StepState.WRONG: "NO", StepState.UNKNOWN: "??"}
_WORD = re.compile(r"`[^`]+`\S*|\S+")


def as_text(report: Report, *, terminal: bool, unicode: bool) -> str:
    """Write a report; where it is not for a terminal, each step is one line, however long."""
    lines = [_visible(report.title), ""]
    for step in report.steps:
        lines += _step(step, _SIGNS if terminal and unicode else _WORDS, terminal=terminal)
    sentence = _visible(report.sentence)
    lines += ["", *(_wrapped(sentence, "", "") if terminal else [sentence])]
    return "\n".join(lines)


def as_json(report: Report) -> str:
    """Write a report for programs; keys are stable within a `schema_version`."""
    return json.dumps(as_object(report), indent=2)


def as_object(report: Report) -> dict[str, Any]:
    """Give what `as_json` writes."""
    failure, entry = report.failure, report.entry
    return {
        "schema_version": SCHEMA_VERSION,
        "connection": report.title,
        "works": report.works,
        "cause": failure.cause if failure is not None else None,
        "entry": {"file": str(entry.file), "line": entry.line} if entry is not None and not entry.domain else None,
        "sentence": report.sentence,
        "commands": report.commands,
        "steps": [_json_step(step) for step in report.steps],
    }


def _step(step: Step, signs: Mapping[StepState, str], *, terminal: bool) -> Iterator[str]:
    sign = signs[step.state]
    head = f"{sign} {step.name:<{_NAME_WIDTH}} "
    text = _visible(step.text)
    yield from _wrapped(text, head, " " * len(head)) if terminal else [head + text]


def _visible(text: str) -> str:
    """Escape what a terminal would not print; the kernel takes nearly anything as the name of an interface."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def _wrapped(text: str, first: str, others: str) -> Iterator[str]:
    """Wrap a text, but no command in it, so that it can be copied."""
    line = first
    for word in _words(text, _WIDTH - len(others)):
        if line.strip() and len(line) + len(word) + (line != first) > _WIDTH:
            yield line
            line = others
        line += word if line in (first, others) else f" {word}"
    yield line


def _words(text: str, longest: int) -> Iterator[str]:
    """Part a text into words; a command is one, and what is longer than a line is cut."""
    for word in _WORD.findall(text):
        cut = len(word) if "`" in word else longest
        yield from (word[start : start + cut] for start in range(0, len(word), cut))


def _json_step(step: Step) -> dict[str, object]:
    found: dict[str, object] = {"step": step.name, "state": step.state, "text": step.text, "cause": step.cause}
    if step.passage is not None:
        found["chain"] = _json_chain(step.passage)
    return found


def _json_chain(passage: Passage) -> dict[str, object]:
    chain, culprit = passage.chain, passage.culprit
    return {
        "backend": chain.system,
        "family": chain.family,
        "table": chain.table,
        "name": chain.name,
        "hook": chain.hook,
        "priority": chain.priority,
        "policy": "accept" if chain.accepts else "drop",
        "owner": owners_of(chain),
        "verdict": passage.judgement,
        "rule": None if culprit is None or not culprit.number else {"chain": culprit.chain, "text": culprit.text},
    }


# What is asked of the host on the way, as plain data, and the one seam through which it is asked. Pure.
MAIN_TABLE: Final = 254  # RT_TABLE_MAIN, linux/rtnetlink.h


@dataclass(frozen=True, slots=True)
class RouteAnswer:
    """What the kernel says of the way to an address.

    `device` is `None` where there is no way. `local` says that it is the host itself. `subnet` is the destination of
    the route that decides, and `table` where that stands; `kind` is the word of ip-route(8) for one that leads nowhere.
    `rule` is one of policy routing that does so, as ip-rule(8) writes it.
    """

    device: str | None
    gateway: Address | None = None
    local: bool = False
    subnet: Subnet | None = None
    table: int = MAIN_TABLE
    kind: str = ""
    rule: str = ""


class GuestAnswer(StrEnum):
    """What became of a TCP connection from the host to a guest; `FORBIDDEN` says that this process may open none.

    Its own sandbox keeps the daemon from addresses that are not private, and rules of the host may do the same.
    """

    ANSWERS = "answers"
    REFUSES = "refuses"
    SILENT = "silent"
    UNREACHABLE = "unreachable"
    FORBIDDEN = "forbidden"


@dataclass(frozen=True, slots=True)
class Sighting:
    """An answer of a guest, seen on an interface of the host.

    `to_host` says that its frame was sent to the host itself, and not to another machine behind the same bridge.
    `by_port` says that the port which was asked answered, or something about it; otherwise it answers a ping.
    """

    device: str
    to_host: bool
    by_port: bool


@dataclass(frozen=True, slots=True)
class FarAnswer:
    """How a guest answers a client off its link.

    `sent` says that the questions left the host. `wanted` are addresses that the guest looked for by ARP, and where.
    """

    sent: bool
    seen: frozenset[Sighting] = frozenset()
    wanted: frozenset[tuple[str, Address]] = frozenset()


class World(Interface):
    """The host, asked only for what the walk comes to. Everything blocks.

    Each method may raise `PortfwdError` where the kernel or a program does not answer.
    """

    def addresses(self) -> Sequence[HostAddress]:
        """List the host's own addresses."""
        ...

    def route(self, to: Address, source: Address | None = None, came_in: str | None = None) -> RouteAnswer:
        """Ask where a packet goes: one of the host's own, or with both arguments one that came in from elsewhere."""
        ...

    def gateway_on(self, device: str, family: Family) -> Address | None:
        """Give a gateway that any routing table knows behind a device."""
        ...

    def listeners(self) -> Sequence[Listener]:
        """List the sockets of the host's own processes in this network namespace."""
        ...

    def holder(self, listener: Listener) -> str | None:
        """Name the process that holds a socket, where that is known."""
        ...

    def chains(self) -> Sequence[BaseChain]:
        """List every base chain of every rule system."""
        ...

    def sysctl(self, name: str) -> str:
        """Read a setting, `net.ipv4.ip_forward`; empty where there is no such thing."""
        ...

    def bridge_of(self, device: str) -> str | None:
        """Give the bridge that a device is plugged into."""
        ...

    def in_hairpin_mode(self, device: str) -> bool:
        """Whether a bridge port may send a frame back where it came from."""
        ...

    def is_up(self, device: str) -> bool | None:
        """Whether a device is switched on; `None` where there is none of that name."""
        ...

    def is_inner(self, device: str) -> bool:
        """Whether a device leads to containers, or nowhere: a veth, a bridge of these or of nothing, a dummy."""
        ...

    def daemon(self) -> int | None:
        """Give the process number of the daemon, if it runs in this network namespace."""
        ...

    def ranges(self, names: Collection[str]) -> Mapping[Place, Ranges]:
        """Give what others have put into external sets."""
        ...

    def over_limit(self, desired: Desired, counted_as: str, source: Address) -> int | None:
        """Give how many first packets of a source went over the limits that are counted as this, as far as is known.

        It is `None` where the source may open no more now, and nothing counts what went over.
        """
        ...

    def text_of(self, file: Path) -> bytes:
        """Give what is in a file of a set; nothing where it cannot be read."""
        ...

    def is_on_link(self, address: Address) -> bool:
        """Whether another machine on the host's own link answers for an address."""
        ...

    def ask_guest(self, address: Address, port: int) -> GuestAnswer:
        """Open a TCP connection from the host to a guest, and close it."""
        ...

    def ask_from_afar(self, address: Address, port: int, device: str, source: Address) -> FarAnswer:
        """Ask a guest behind a device by TCP and by ping, as a client with this source, and watch how it answers."""
        ...
