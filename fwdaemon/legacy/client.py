"""The daemon's side of the helpers: starts them when they are first needed, asks, and never leaves one behind.

Also what a host lacks of what rules need, and who has used up what it may open.

A helper ends when its standard input does, so it cannot outlive the holder of a `HelperClient`, however that ends.
"""

import json
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Protocol

from fwdaemon.core.admission import Need, Rate, needs_of
from fwdaemon.core.exposures import Exposure
from fwdaemon.core.report import ApplyResult, Fault, FaultKind
from fwdaemon.core.state import Desired
from fwdaemon.core.types import Address, Family
from fwdaemon.errors import HangingError, KernelError, PortfwdError
from fwdaemon.kernel.conntrack import open_flows
from fwdaemon.kernel.process import Companion
from fwdaemon.legacy import model
from fwdaemon.legacy.admission import open_match, rate_match, rate_name, used_up
from fwdaemon.legacy.info import PATH_VARIABLE
from fwdaemon.legacy.model import COMMENT, Change, ObservedTable, Rule, TableName
from fwdaemon.resolve.flows import Carriers

# Others hold iptables' lock for milliseconds. A helper may do nothing for longer than this.
_PATIENCE = 1.5
_HELPER = "fwdaemon.legacy.helper"
# Python's own distutils, for one path that python-iptables asks it for; that of setuptools takes a tenth of a second.
_QUICK = {"SETUPTOOLS_USE_DISTUTILS": "stdlib"}
_INHERITED = (PATH_VARIABLE, "IPTABLES_LIBDIR", "XTABLES_LIBDIR", "LD_LIBRARY_PATH")


class UnusableError(PortfwdError):
    """The iptables-legacy tables of a family cannot be used on this host."""


class LateError(KernelError):
    """Another program holds iptables' lock, or the helper hung."""


class Session(Protocol):
    """The tables of one family, held under iptables' lock."""

    def observe(self, heads: model.Heads, behind: Collection[str]) -> dict[TableName, ObservedTable]:
        """Read tables; `heads` are the rules of ours that are looked for, by table and chain.

        `behind` are patterns of chains: jumps to these stay ahead of our rules.

        Raises:
            UnusableError: one of them is not there, and cannot be.
            KernelError: they cannot be read.

        """
        ...

    def paths(self, rules: Iterable[Rule], behind: Collection[str]) -> Change:
        """Say what brings the rules of guests' paths to their place in FORWARD; raises as `observe` does."""
        ...

    def commit(self, table: TableName, change: Change) -> None:
        """Change one table that was observed, at once.

        Raises:
            KernelError: the table or a rule was refused, or a program without the lock was faster; nothing was changed.

        """
        ...


class HelperClient:
    """One family's helper. For one thread at a time."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._patience = _PATIENCE
        self._helper: Companion | None = None

    @property
    def pid(self) -> int | None:
        """The process number of the helper, while there is one."""
        return self._helper.pid if self._helper else None

    @contextmanager
    def locked(self, patience: float = _PATIENCE) -> Iterator[Session]:
        """Hold iptables' lock from the first look on until the end of the block; it may take `patience` seconds.

        Raises:
            UnusableError: the iptables-legacy tables of this family lack something we need; its text says what.
            KernelError: the helper cannot be started.

        """
        self._patience = patience
        if self._helper is None:
            self._start()
        try:
            yield self
        finally:
            if self._helper is not None:
                self._ask({"do": model.RELEASE})

    def observe(self, heads: model.Heads, behind: Collection[str]) -> dict[TableName, ObservedTable]:
        """See `Session.observe`."""
        request = {"do": model.OBSERVE, "heads": model.pack_heads(heads), "behind": tuple(behind)}
        answer = self._ask({**request, "patience": self._patience})
        return {TableName(name): model.unpack_observed(packed) for name, packed in answer.items()}

    def paths(self, rules: Iterable[Rule], behind: Collection[str]) -> Change:
        """See `Session.paths`."""
        request = {"do": model.PATHS, "rules": list(map(model.pack_rule, rules)), "behind": tuple(behind)}
        return model.unpack_change(self._ask({**request, "patience": self._patience}))

    def commit(self, table: TableName, change: Change) -> None:
        """See `Session.commit`."""
        self._ask({"do": model.COMMIT, "table": table.value, "change": model.pack_change(change)})

    def tried(self, samples: Sequence[Rule]) -> list[str | None]:
        """Give for each of these rules what keeps it from being made; `None` where nothing does.

        Raises:
            UnusableError: as `locked` does.
            KernelError: the helper cannot be started.

        """
        if self._helper is None:
            self._start()
        found: list[str | None] = self._ask({"do": model.TRY, "rules": [*map(model.pack_rule, samples)]})
        # What state the library is in after it has refused a rule is unknown.
        if any(found):
            self.close()
        return found

    def close(self) -> None:
        """End the helper, if there is one."""
        helper, self._helper = self._helper, None
        if helper is not None:
            helper.close()

    def _start(self) -> None:
        try:
            inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
            self._helper = Companion(_HELPER, str(int(self._family)), _QUICK | _beside_library() | inherited)
        except OSError as error:
            raise KernelError(f"cannot start the helper for IPv{self._family}: {error}") from error
        missing = self._ask({"do": model.SELF_TEST})
        if missing:
            self.close()
            raise UnusableError("; ".join(missing))

    def _ask(self, request: Mapping[str, Any]) -> Any:
        answer = self._exchange(json.dumps(request))
        if "error" in answer:
            if answer["final"]:
                self.close()
            kind = UnusableError if answer["unusable"] else LateError if answer["late"] else KernelError
            raise kind(answer["error"])
        return answer["ok"]

    def _exchange(self, line: str) -> Any:
        """Send a line and wait for one; a helper that takes too long, or is gone, is given up."""
        helper = self._helper
        if helper is None:
            raise KernelError(f"the helper for IPv{self._family} has gone")
        try:
            answer = helper.exchange(line)
        except HangingError as error:
            self.close()
            raise LateError(str(error)) from error
        if not answer:
            self._helper = None
            status = helper.close()
            raise KernelError(f"the helper for IPv{self._family} ended unexpectedly, with status {status}")
        return json.loads(answer)


def _beside_library() -> dict[str, str]:
    """Tell python-iptables where its own C part is; it would run a compiler and a linker, as root, to find it."""
    spec = find_spec("iptc")
    return {"IPTABLES_LIBDIR": str(Path(spec.origin).parents[1])} if spec is not None and spec.origin else {}


# --- what a host lacks -----------------------------------------------------------------------------------------------


_MATCHES: Final = {Need.SETS: "set", Need.RATE: "hashlimit", Need.OPEN: "connlimit"}


def _needs_of(exposure: Exposure, desired: Desired) -> frozenset[Need]:
    """Say what the rules of an exposure need."""
    return frozenset().union(*(needs_of(asked) for asked in (exposure.admission, desired.barred) if asked is not None))


class Lacking:
    """Finds what a host lacks; what it does not lack is not asked for again."""

    def __init__(self, tried: Callable[[Family, Sequence[Need]], Sequence[str | None]]) -> None:
        """Take what says for each of these why the match cannot be used."""
        self._tried = tried
        self._there: set[tuple[Family, Need]] = set()

    def of(self, family: Family, needs: Collection[Need]) -> dict[Need, Fault]:
        """Say what is not there of what some rules need."""
        asked = sorted(need for need in needs if (family, need) not in self._there)
        found = {}
        if Need.SETS in asked and shutil.which("ipset") is None:
            found[Need.SETS] = Fault(FaultKind.NO_IPSET, (Need.SETS.value,))
            asked.remove(Need.SETS)
        for need, reason in zip(asked, self._tried(family, asked) if asked else (), strict=True):
            if reason is None:
                self._there.add((family, need))
            else:
                found[need] = Fault(FaultKind.NO_MATCH, (need.value, str(int(family)), _MATCHES[need]), reason)
        return found


def sample(need: Need, family: Family) -> Rule:
    """Make a rule that needs a match, to be tried."""
    match = rate_match(Rate(1, "minute"), "") if need is Need.RATE else open_match(1, family)
    return Rule(match, "DROP", COMMENT)


def left_out(desired: Desired, lacking: Lacking) -> tuple[Desired, ApplyResult]:
    """Leave out what this host cannot keep clients from, and count down where it can."""
    desired, late = _counting_down(desired, lacking)
    if desired.barred is None and not desired.limited:
        return desired, ApplyResult(faults=late)
    needs = {item: _needs_of(item, desired) for item in desired.exposures}
    missing = {family: lacking.of(family, _all_of(needs, family)) for family in sorted(desired.families)}
    refused = [
        (item, missing[item.family][need])
        for item, asked in needs.items()
        for need in sorted(asked & missing[item.family].keys())[:1]
    ]
    faults = dict.fromkeys(fault for _, fault in refused)
    kept = desired.lacking({item for item, _ in refused}) if refused else desired
    return kept, ApplyResult(refused=tuple(refused), faults=(*late, *sorted(faults, key=str)))


def _counting_down(desired: Desired, lacking: Lacking) -> tuple[Desired, tuple[Fault, ...]]:
    """Have what is open for a while count down, or say that it knows the clock on the wall alone."""
    lasting = {item.family for item in desired.forwards if item.until is not None}
    if any(lacking.of(family, {Need.SETS}) for family in sorted(lasting)):
        return desired, (Fault(FaultKind.ONE_CLOCK),)
    return (replace(desired, counts_down=True) if lasting else desired), ()


def _all_of(needs: Mapping[Exposure, Collection[Need]], family: Family) -> frozenset[Need]:
    return frozenset(need for item, asked in needs.items() if item.family is family for need in asked)


# --- who is at a limit -----------------------------------------------------------------------------------------------

# What the match hashlimit counts, of this thread, since a network namespace is a thread's.
_RATES: Final = {
    Family.IPV4: Path("/proc/thread-self/net/ipt_hashlimit"),
    Family.IPV6: Path("/proc/thread-self/net/ip6t_hashlimit"),
}


def at_limits(limited: Collection[Exposure], label: int) -> dict[str, dict[Address, None]]:
    """Tell which sources may open nothing more now, by what their connections are counted as.

    The kernel tells what is left of a rate. Of the match connlimit it tells nothing, so open connections are counted.
    """
    found: defaultdict[str, dict[Address, None]] = defaultdict(dict)
    for counted_as, source in (*_at_rates(limited), *_at_most_open(limited, label)):
        found[counted_as][source] = None
    return dict(found)


def _at_rates(limited: Iterable[Exposure]) -> Iterator[tuple[str, Address]]:
    rates = {(item.family, item.counted_as, item.admission.rate) for item in limited if item.admission is not None}
    for family, counted_as, rate in rates:
        if rate is not None:
            with suppress(OSError):  # no such rule is there
                listing = (_RATES[family] / rate_name(rate, counted_as)).read_text(encoding="ascii")
                yield from ((counted_as, source) for source in used_up(listing))


def _at_most_open(limited: Iterable[Exposure], label: int) -> Iterator[tuple[str, Address]]:
    most = {item: item.admission.max_open for item in limited if item.admission and item.admission.max_open}
    if not most:
        return
    carriers, found = Carriers(most), Counter[tuple[str, int, Address]]()
    with suppress(KernelError):
        for item in open_flows(label):
            if (exposure := carriers.carrier(item.flow)) is not None:
                found[exposure.counted_as, most[exposure], item.flow.source] += item.number
    yield from ((counted_as, source) for (counted_as, limit, source), number in found.items() if number >= limit)
