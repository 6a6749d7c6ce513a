"""What a test can leave behind on a host that it shares with others."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Self

from tests.lab.host import Host


@dataclass(frozen=True, slots=True)
class Leftovers:
    """What is there at one moment."""

    domains: frozenset[str]
    networks: frozenset[str]
    daemons: frozenset[str]
    rules: frozenset[str]

    @classmethod
    def of(cls, host: Host) -> Self:
        """Look at a host."""
        if not host.libvirt.running:
            # A test that stops libvirtd on purpose leaves a host that cannot be used; the next one gets it back.
            host.libvirt.start()
        return cls(
            domains=frozenset(host.libvirt.domains()),
            networks=frozenset(host.libvirt.networks()),
            daemons=frozenset(map(str, host.daemons())),
            rules=frozenset(host.own_rules().splitlines()),
        )

    def beyond(self, before: "Leftovers") -> str:
        """What is there now and was not before, as text; empty for nothing."""
        return "; ".join(self._new(before))

    def _new(self, before: "Leftovers") -> Iterable[str]:
        for field in fields(self):
            new: frozenset[str] = getattr(self, field.name) - getattr(before, field.name)
            if new:
                yield f"{field.name}: {', '.join(sorted(new))}"
