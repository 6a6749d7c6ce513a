"""What tests of the keepers of the host's network share: hosts on links, and runs of the program one after another."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from fwdaemon.core.report import ApplyResult
from fwdaemon.core.state import Desired
from fwdaemon.core.types import Family
from fwdaemon.hostnet.host_network import SystemHostNetwork
from fwdaemon.kernel import sysctl
from tests.kernel.links import Links, linked

FILTERED = "net.bridge.bridge-nf-call-iptables"

MakeHost = Callable[[], SystemHostNetwork]


@contextmanager
def linked_without_forwarding() -> Iterator[Links]:
    """Give a host on its links, on which nobody has turned anything on."""
    with linked() as links:
        links.host.sysctl("ipv4.ip_forward=0")
        sysctl.write(FILTERED, "0")
        yield links


@contextmanager
def runs(directory: Path) -> Iterator[MakeHost]:
    """Make the keepers of one run after another; what one leaves, the next finds."""
    with ExitStack() as stack:

        def begun() -> SystemHostNetwork:
            host = SystemHostNetwork(lambda: frozenset(Family), directory)
            stack.callback(host.close)
            return host

        yield begun


def apply(host: SystemHostNetwork, desired: Desired, *, full: bool = True) -> ApplyResult:
    """Have the host hold this."""
    host.release(desired)
    desired = host.confine(desired, ip_forward=True)
    return host.apply(desired, ip_forward=True, full=full)
