"""How exposures are used: the connections that our rules counted, and those that are open now.

Reading that takes a while where there are many, so it is done only for who asks, and never on the loop's thread. What
cannot be read is not known, and no error.
"""

from collections.abc import Callable, Mapping

from fwdaemon.core.exposures import Exposure
from fwdaemon.core.state import Desired
from fwdaemon.errors import KernelError
from fwdaemon.hostnet import forwarding
from fwdaemon.kernel import conntrack
from fwdaemon.kernel.observe import Elsewhere
from fwdaemon.resolve.flows import Carriers
from fwdaemon.status.rows import Readings


class UsageReader:
    """Reads how exposures are used. Its methods block; call them from one thread at a time."""

    def __init__(self, counters: Callable[[Desired], Mapping[Exposure, int]]) -> None:
        """Take what gives the connections that rules have counted."""
        self._counters = counters
        self._elsewhere = Elsewhere()

    def read(self, desired: Desired) -> Readings:
        """Read all there is about what the kernel holds."""
        not_forwarding = frozenset(family for family in desired.families if not forwarding.is_on(family))
        elsewhere = self._elsewhere.holders(desired.elsewhere | desired.handed_over)
        return Readings(self._counters(desired), _open(desired), not_forwarding, elsewhere)


def _open(desired: Desired) -> Mapping[Exposure, tuple[int, int | None]] | None:
    carriers, found = Carriers(desired.exposures), dict[Exposure, tuple[int, int | None]]()
    by_client = any(forward.sources for forward in desired.forwards)
    try:
        for item in conntrack.open_flows(desired.label, by_client=by_client):
            if (exposure := carriers.carrier(item.flow)) is not None:
                number, size = found.get(exposure, (0, None))
                found[exposure] = number + item.number, size if item.size is None else item.size + (size or 0)
    except KernelError:
        return None
    return found
