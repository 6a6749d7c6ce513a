"""What the rest of the program sees of the kernel's rules: the backend interface and the choice of backend.

A backend makes the kernel hold the desired state, and tells what it had to mend. Where the rules live, and in what
form, stays behind it.
"""

from collections.abc import Collection
from typing import Protocol

from fwdaemon.desired import Desired
from fwdaemon.flows import Flow
from fwdaemon.nftables.backend import NftablesBackend
from fwdaemon.outcome import Outcome
from fwdaemon.process import Runner


class Backend(Protocol):
    """One of the kernel's rule systems, holding our rules. Its methods block; call them from one thread at a time."""

    def apply(self, desired: Desired, *, thorough: bool) -> Outcome:
        """Make the kernel hold `desired`; `thorough` compares even what seems unchanged.

        Raises:
            PortfwdError: the kernel refused; what it held before is still there, whole.

        """
        ...

    def render(self, desired: Desired) -> str:
        """Write the rules for `desired` as native text, touching nothing."""
        ...

    def refuse(self, flows: Collection[Flow]) -> None:
        """Refuse what the guests of these flows still send on them, for a while; they are about to be ended."""
        ...

    def remove(self) -> Outcome:
        """Take away everything that is ours, of every family, whoever put it there."""
        ...


def choose_backend(runner: Runner) -> Backend:
    """Give the backend that holds our rules on this host."""
    return NftablesBackend(runner)
