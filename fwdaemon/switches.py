"""A setting of interfaces that is switched while something needs it, and put back after."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from fwdaemon import sysctl
from fwdaemon.errors import KernelError
from fwdaemon.ledger import Ledger
from fwdaemon.model import Family
from fwdaemon.naming import shown


@dataclass(slots=True)
class Switched:
    """What came of it: whether anything was written, and why an interface could not be switched."""

    changed: bool = False
    faults: dict[str, str] = field(default_factory=dict)


class Switches:
    """Keeps a setting at `value` on the interfaces that need it; those that had it before are none of ours.

    The former values are in the ledger, in lines like `virbr0 0`: nothing else would tell a later run whose doing that
    was.
    """

    def __init__(self, ledger: Ledger, family: Family, setting: str, value: str) -> None:
        self._ledger = ledger
        self._family = family
        self._setting = setting
        self._value = value
        lines = (line.rpartition(" ") for line in ledger.lines)
        self._former = {interface: former for interface, _, former in lines if interface and former}

    @property
    def ours(self) -> Collection[str]:
        """The interfaces that we switched and have not put back."""
        return self._former.keys()

    def keep(self, needed: Collection[str]) -> Switched:
        """Switch where it is needed, and put back where it is not."""
        return self._done(sorted(needed), self._switch, self.release(needed))

    def release(self, needed: Collection[str]) -> Switched:
        """Put back where it is not needed. What somebody has changed since stays as it is."""
        return self._done(sorted(self._former.keys() - needed), self._put_back, Switched())

    def _done(self, interfaces: Collection[str], switch: Callable[[str], bool], so_far: Switched) -> Switched:
        for interface in interfaces:
            try:
                so_far.changed |= switch(interface)
            except KernelError as error:
                so_far.faults[interface] = str(error)
        return so_far

    def _switch(self, interface: str) -> bool:
        name = sysctl.of_interface(self._family, interface, self._setting)
        before = sysctl.read(name)
        if before == self._value:
            return False
        if not before:
            raise KernelError(f"there is no {shown(name)}")
        if interface not in self._former:
            self._former[interface] = before
            self._record()  # first, or nobody would put it back if we ended here
        sysctl.write(name, self._value)
        return True

    def _put_back(self, interface: str) -> bool:
        name = sysctl.of_interface(self._family, interface, self._setting)
        switched = sysctl.read(name) == self._value
        if switched:
            sysctl.write(name, self._former[interface])
        del self._former[interface]
        self._record()
        return switched

    def _record(self) -> None:
        self._ledger.write(f"{interface} {former}" for interface, former in self._former.items())
