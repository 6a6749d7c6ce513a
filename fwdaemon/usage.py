"""How openings are used: the connections that our rules counted, and those that are open now.

Reading that takes a while where there are many, so it is done only for who asks, and never on the loop's thread. What
cannot be read is not known, and no error.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import chain

from fwdaemon import conntrack, forwarding
from fwdaemon.desired import Desired, Opening
from fwdaemon.errors import KernelError, ProcessError
from fwdaemon.flows import Carriers
from fwdaemon.legacy import counters as legacy
from fwdaemon.model import Family
from fwdaemon.netfilter import Side
from fwdaemon.nftables import counters as nftables
from fwdaemon.nftables.model import table_name
from fwdaemon.process import Runner
from fwdaemon.status_rows import Readings

_Rules = Mapping[tuple[str, str, str], Opening]


class UsageReader:
    """Reads what one side's rules counted. Its methods block; call them from one thread at a time."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._known: tuple[Desired, Side, _Rules] | None = None

    def read(self, desired: Desired, side: Side) -> Readings:
        """Read all there is about what the kernel holds."""
        rules, connections = self._rules(desired, side), defaultdict[Opening, int](int)
        for place, packets in self._packets(desired, side):
            if (opening := rules.get(place)) is not None:
                connections[opening] += packets
        not_forwarding = frozenset(family for family in desired.families if not forwarding.is_on(family))
        return Readings(connections, _open(desired), not_forwarding)

    def _rules(self, desired: Desired, side: Side) -> _Rules:
        """Give the rules of a state, made anew only when it is another one."""
        if self._known is None or self._known[0] is not desired or self._known[1] is not side:
            module = nftables if side is Side.NFTABLES else legacy
            self._known = (desired, side, module.counting_rules(desired))
        return self._known[2]

    def _packets(self, desired: Desired, side: Side) -> Iterator[tuple[tuple[str, str, str], int]]:
        read = self._nftables_packets if side is Side.NFTABLES else _legacy_packets
        return chain.from_iterable(read(family) for family in sorted(desired.families))

    def _nftables_packets(self, family: Family) -> Iterator[tuple[tuple[str, str, str], int]]:
        try:
            listing = self._runner.run("nft", "list", "table", *table_name(family).split()).stdout
        except ProcessError:
            return iter(())
        return nftables.read_packets(family, listing)


def _legacy_packets(family: Family) -> Iterator[tuple[tuple[str, str, str], int]]:
    try:
        return iter(list(legacy.packets(family)))
    except KernelError:
        return iter(())


def _open(desired: Desired) -> Mapping[Opening, tuple[int, int | None]] | None:
    carriers, found = Carriers(desired.openings), dict[Opening, tuple[int, int | None]]()
    try:
        for item in conntrack.open_flows(desired.mark):
            if (opening := carriers.carrier(item.flow)) is not None:
                number, size = found.get(opening, (0, None))
                found[opening] = number + 1, size if item.size is None else item.size + (size or 0)
    except KernelError:
        return None
    return found
