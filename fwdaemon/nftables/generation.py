"""nftables' generation: a number the kernel raises with every committed change, and who committed it.

The number makes "nothing has changed" cost one small message instead of a listing. The multicast group reports each
new one at once, with the process that made it, and before that of everything the commit changed. Source: nfnetlink(7)
framing, `enum nft_msg_types` and `NFTA_GEN_*` in linux/netfilter/nf_tables.h.

The kernel is also asked whether it has what rules may need.
"""

import asyncio
import logging
import socket
import struct
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from fwdaemon.core.admission import Need
from fwdaemon.core.report import Actor, ActorKind, Fault, FaultKind, RulesChanged
from fwdaemon.core.types import Family
from fwdaemon.errors import HangingError, KernelError, ProcessError
from fwdaemon.kernel.external_sets import Externals
from fwdaemon.kernel.netlink import (
    NETFILTER,
    Message,
    NetlinkSocket,
    Subscription,
    attribute,
    attributes,
    messages,
)
from fwdaemon.kernel.process import Runner
from fwdaemon.nftables.external import Hearing
from fwdaemon.nftables.gates import GateState, gate_script, iptables_program, is_iptables_gate
from fwdaemon.nftables.model import TABLE_NAME

_NFNLGRP_NFTABLES = 7
_SUBSYSTEM = 10 << 8
_NEWGEN = _SUBSYSTEM | 15
_GETGEN = _SUBSYSTEM | 16
_ADDED = _SUBSYSTEM | 12  # NFT_MSG_NEWSETELEM
_ELEMENTS = frozenset({_ADDED, _SUBSYSTEM | 14})  # and NFT_MSG_DELSETELEM
_OUR_NAME = f"{TABLE_NAME}\0".encode()
_ID, _PROCESS_ID, _PROCESS_NAME = 1, 2, 3
_ELEMENTS_TABLE, _ELEMENTS_SET = 1, 2  # NFTA_SET_ELEM_LIST_TABLE and …_SET, with which such a message begins
_NFGENMSG = struct.pack("!BBH", 0, 0, 0)
_BUFFER = 1 << 16
# A transaction of 10,000 forwards announces each rule; what overflows even so is reported as ENOBUFS.
_RECEIVE_BUFFER = 8 << 20


@dataclass(frozen=True, slots=True)
class Generation:
    """One commit: its number, the netlink port it came from, and the process, as the kernel names it.

    The port is the process id as its own pid namespace counts it, `pid` that of the machine: they differ in containers.
    With `elements_only`, it changed nothing but elements in sets of other tables that no gate depends on, or in those
    that others fill.
    """

    number: int
    port: int
    pid: int
    process: str
    elements_only: bool = False


# The words that list our table of a family.
LISTINGS: Final = {family: ("nft", "-j", "list", "table", family.word, TABLE_NAME) for family in Family}


def current_generation() -> int:
    """Ask the kernel for the number of the last commit in this network namespace.

    Raises:
        KernelError: the kernel did not answer, or has no nftables.

    """
    try:
        with NetlinkSocket(NETFILTER) as asking:
            (answer,) = asking.ask(_GETGEN, _NFGENMSG)
    except (OSError, ValueError) as error:
        raise KernelError(
            f"the kernel does not report its nftables generation ({error}); is nf_tables there, and are we root?"
        ) from error
    return _generation(attributes(answer.body[len(_NFGENMSG) :]), answer.port).number


def open_monitor() -> socket.socket:
    """Open a non-blocking socket that hears of every commit in this network namespace, to be read with `receive`."""
    monitor = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, NETFILTER)
    try:
        _enlarge(monitor)
        monitor.bind((0, 1 << (_NFNLGRP_NFTABLES - 1)))
    except OSError:
        monitor.close()
        raise
    return monitor


class JudgedMaps:
    """Verdict maps of others whose elements say where a gate belongs: who looks at gates adds them, as bytes.

    One is added before it is listed, so that whatever is changed after that is heard. Added to on one thread at a time,
    and asked on any.
    """

    def __init__(self) -> None:
        self._begins: frozenset[bytes] = frozenset()
        self._seen: set[bytes] = set()

    def add(self, table: str, name: str) -> None:
        """Have changes of its elements reported from now on."""
        begin = attribute(_ELEMENTS_TABLE, f"{table}\0".encode()) + attribute(_ELEMENTS_SET, f"{name}\0".encode())
        self._seen.add(begin)
        self._begins |= {begin}

    def keep_added(self) -> None:
        """Forget those that were not added since the last time: every gate has been looked at."""
        self._begins, self._seen = frozenset(self._seen), set()

    def has(self, body: bytes) -> bool:
        """Whether a message of elements is of one of them; a table of another family may have the same names."""
        return any(body.startswith(begin, len(_NFGENMSG)) for begin in self._begins)


class Announcements:
    """What the kernel announces, taken apart in its order: the changes of a commit come before its number."""

    def __init__(self, judged: JudgedMaps | None = None, externals: Externals | None = None) -> None:
        self._judged = judged or JudgedMaps()
        self._elements = self._more = False
        self._hearing = Hearing(externals or Externals())

    def receive(self, monitor: socket.socket) -> Iterator[Generation]:
        """Read all commits that are waiting.

        Raises:
            OSError: ENOBUFS, some were lost; the reader must compare everything.

        """
        while True:
            try:
                datagram = monitor.recv(_BUFFER)
            except BlockingIOError:
                return
            yield from self.generations(datagram)

    def generations(self, datagram: bytes) -> Iterator[Generation]:
        """Decode the new generations in a netlink datagram."""
        for message in messages(datagram):
            if message.kind == _NEWGEN:
                found = _generation(attributes(message.body[len(_NFGENMSG) :]), message.port)
                yield replace(found, elements_only=self._elements and not self._more)
                self._elements = self._more = False
                self._hearing.committed()
            elif message.kind in _ELEMENTS and self._is_passed_over(message):
                self._elements = True
            else:
                self._more = True

    def _is_passed_over(self, message: Message) -> bool:
        """Whether neither our rules nor a gate depend on these elements; what is in external sets is remembered."""
        if _OUR_NAME in message.body:
            return self._hearing.takes(message, added=message.kind == _ADDED)
        return not self._judged.has(message.body)


def _generation(found: Mapping[int, bytes], port: int) -> Generation:
    name = found.get(_PROCESS_NAME, b"").rstrip(b"\0").decode(errors="replace") or "unknown"
    number, pid = (int.from_bytes(found.get(kind, b""), "big") for kind in (_ID, _PROCESS_ID))
    return Generation(number, port, pid, name)


def _enlarge(monitor: socket.socket) -> None:
    """Ask for a large buffer; past the machine's limit that takes CAP_NET_ADMIN, which we have."""
    force = 33  # SO_RCVBUFFORCE, socket(7); Python has no name for it
    try:
        monitor.setsockopt(socket.SOL_SOCKET, force, _RECEIVE_BUFFER)
    except PermissionError:
        monitor.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)


# Our own commits to nftables, known by the number each one gave the ruleset.
#
# A process number identifies nothing: in another pid namespace it is another's, and each is used again some day. So a
# commit counts as ours only where the number went up by exactly one while our program ran, and that program sent it.
# Where another commit came in between, it does not matter which is which: both count as foreign, and cost one pass.

# How many commits may be made before the loop reads of the first.
_REMEMBERED = 64
# How many commits that changed elements alone may be made between two looks.
_PASSED_OVER = 4096


class Commits:
    """Makes commits on one thread at a time, and knows on any thread which ones it made.

    `judged` are the maps of others whose changes count as a change of rules.
    """

    def __init__(self, runner: Runner) -> None:
        self.judged = JudgedMaps()
        self._runner = runner
        self._made: deque[tuple[int, int]] = deque(maxlen=_REMEMBERED)
        self._harmless: deque[int] = deque(maxlen=_PASSED_OVER)
        self._ended: Callable[[], object] = _nothing
        self.committing = False

    def on_end(self, ended: Callable[[], object] | None) -> None:
        """Have `ended` called, on the committing thread, whenever `committing` has become false; `None` ends that."""
        self._ended = ended or _nothing

    def commit(self, *argv: str, stdin: str) -> None:
        """Run a program that commits once.

        Raises:
            ProcessError: it failed; see `Runner.run`.
            KernelError: the kernel does not answer the number of its last commit.

        """
        self.committing = True
        try:
            following = following_generation(current_generation())
            finished = self._runner.run(*argv, stdin=stdin)
            if current_generation() == following:
                self._made.append((following, finished.pid))
        finally:
            self.committing = False
            self._ended()

    def try_commit(self, script: str) -> bool:
        """Commit a script of `nft`, and tell whether the kernel took it.

        Raises:
            HangingError: the program hung.
            KernelError: the kernel does not tell the number of its last commit.

        """
        try:
            self.commit("nft", "-f", "-", stdin=script)
        except HangingError:
            raise
        except ProcessError as error:
            _log.debug("looking at everything after: %s", error)
            return False
        return True

    def move(self, state: GateState, bit: int | None) -> Fault | None:
        """Make or move a gate, or without a `bit` close it; gives what is wrong where that is refused."""
        try:
            self._move(state, bit)
        except ProcessError as error:
            owned = not is_iptables_gate(state.gate) and "Operation not permitted" in error.stderr
            return Fault(FaultKind.GATE_OWNED if owned else FaultKind.GATE_REFUSED, (str(state.gate),), str(error))
        return None

    def _move(self, state: GateState, bit: int | None) -> None:
        script = gate_script(state, bit)
        if is_iptables_gate(state.gate):
            self.commit(iptables_program(state.gate, "-restore"), "--noflush", "--wait", stdin=script)
        else:
            self.commit("nft", "-f", "-", stdin=script)

    def pass_over(self, number: int) -> None:
        """Note that a commit changed neither our tables nor a gate."""
        self._harmless.append(number)

    def same_since(self, number: int, generation: int) -> bool:
        """Whether all commits since the one of this number, up to a generation, are known to have changed nothing."""
        known = set(self._harmless)
        while number != generation:
            number = following_generation(number)
            if number not in known:
                return False
        return True

    def made(self, commit: Generation) -> bool:
        """Whether a commit is ours; the answer is right while nothing is `committing`."""
        return (commit.number, commit.port) in self._made


def following_generation(number: int) -> int:
    """Give the number that the next commit makes of this one; the kernel leaves out 0."""
    return number + 1 & 0xFFFFFFFF or 1


def _nothing() -> None:
    pass


# Hears of every change to nftables in this network namespace, and says who made it, unless we did.
_log = logging.getLogger(__name__)


class RulesMonitor:
    """Calls `changed` on the asyncio loop's thread with the name and pid of the process that changed rules.

    When so much happened that some of it was lost, it asks for a full pass. What is heard while a commit of ours is
    on its way is reported after that. What changed only elements in sets of others is not reported: bans come and go
    all the time, and neither our tables nor a gate depend on them, but for the verdict maps by which others go on ahead
    of one.
    """

    def __init__(self, commits: Commits, changed: RulesChanged, externals: Externals | None = None) -> None:
        self._commits = commits
        self._changed = changed
        self._externals = externals or Externals()
        self._announcements = Announcements(commits.judged, self._externals)
        self._received: list[Generation] = []
        self._subscription = Subscription(open_monitor, self._read)

    def start(self) -> None:
        """Begin to listen.

        Raises:
            KernelError: this kernel has no nftables, or we may not listen.

        """
        try:
            self._subscription.start()
        except OSError as error:
            raise KernelError(
                f"the kernel does not let us listen to nftables ({error.strerror}); are we root?"
            ) from error
        loop = asyncio.get_running_loop()
        self._commits.on_end(lambda: loop.call_soon_threadsafe(self._report))

    def close(self) -> None:
        """Stop listening."""
        self._commits.on_end(None)
        self._subscription.close()

    def _read(self, monitor: socket.socket) -> None:
        try:
            self._received += self._announcements.receive(monitor)
        except OSError as error:
            _log.debug("some changes of nftables went unheard: %s", error)
            self._externals.doubt()
            self._changed(Actor(ActorKind.COMMITS_LOST), full=True)
        self._report()

    def _report(self) -> None:
        if self._commits.committing:
            return
        received, self._received = self._received, []
        for commit in received:
            if commit.elements_only:
                self._commits.pass_over(commit.number)
            elif not self._commits.made(commit):
                self._changed(Actor(ActorKind.PROGRAM, commit.process, commit.pid), full=False)


# --- what the kernel lacks -------------------------------------------------------------------------------------------


class _Sample(NamedTuple):
    """What something needs of nftables, in words and as a set and a rule, and the module that has it."""

    title: str
    flags: str
    rule: str
    module: str


_SAMPLES: Final = {
    Need.SETS: _Sample("sets with ranges and timeouts", "interval, timeout", "ip saddr @sample drop", "nf_tables"),
    Need.RATE: _Sample(
        "limit", "dynamic, timeout", "update @sample { ip saddr limit rate over 1/day counter } drop", "nft_limit"
    ),
    Need.OPEN: _Sample("ct count", "dynamic", "add @sample { ip saddr ct count over 1 counter } drop", "nft_connlimit"),
}
# ENOENT, EOPNOTSUPP and EAFNOSUPPORT. What else may be wrong, as that the user is not root, says nothing of the kernel.
_LACKING: Final = ("No such file or directory", "Operation not supported", "not supported by protocol")


def lacking(runner: Runner, needs: Collection[Need]) -> dict[Need, Fault]:
    """Have the kernel check a rule for each of these, and give what it lacks; what it does not tell is left out.

    With `--check`, a batch ends without a commit, so the kernel makes nothing of it; but it loads its modules.
    """
    found = {}
    for need in sorted(needs):
        title, flags, rule, module = _SAMPLES[need]
        kept = f"set sample {{ type ipv4_addr; size 1; flags {flags}; }}"
        script = f"table ip kvm_portfwd_sample {{\n{kept}\nchain sample {{\n{rule}\n}}\n}}\n"
        try:
            runner.run("nft", "--check", "-f", "-", stdin=script)
        except ProcessError as error:
            if reason := next((text for text in _LACKING if f"process rule: {text}" in error.stderr), ""):
                found[need] = Fault(FaultKind.NO_EXPRESSION, (need.value, title, module), reason)
    return found
