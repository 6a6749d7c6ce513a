"""Which of the things that are wrong now are news. Pure; the time is given.

What waits, and why, is said once. A fault is said once it has lasted for a moment: while libvirt takes a network down,
the kernel tells that a bridge went before libvirt tells that the network did.
"""

from collections.abc import Collection, Iterable

from fwdaemon.desired import Owner, Waiting

LASTING_S = 1.0


class Complaints:
    """Remembers what has been said."""

    def __init__(self, lasting_s: float = LASTING_S) -> None:
        self._lasting_s = lasting_s
        self._waiting: frozenset[Waiting] = frozenset()
        self._faults: dict[str, float] = {}
        self._said: frozenset[str] = frozenset()

    def of_waiting(self, entries: Iterable[Waiting], live: Collection[Owner], *, everything: bool) -> list[Waiting]:
        """Give the new entries; `live` are those who had openings just before.

        That one of these stopped is said with its openings.
        """
        present = dict.fromkeys(entries)
        unsaid = [entry for entry in present if entry not in self._waiting]
        new = [entry for entry in unsaid if everything or not (entry.stopped and entry.owner in live)]
        self._waiting = frozenset(present)
        return new

    def of_faults(self, faults: Iterable[str], now: float, *, everything: bool) -> list[str]:
        """Give the faults that have lasted and were not said yet; with `everything`, those of this moment too."""
        self._faults = {fault: self._faults.get(fault, now) for fault in faults}
        lasting = [fault for fault, since in self._faults.items() if everything or now >= since + self._lasting_s]
        new = [fault for fault in lasting if fault not in self._said]
        self._said = frozenset(fault for fault in self._faults if fault in self._said or fault in lasting)
        return new

    @property
    def ends(self) -> float | None:
        """When the next fault will have lasted; `None` when all have been said."""
        unsaid = (since + self._lasting_s for fault, since in self._faults.items() if fault not in self._said)
        return min(unsaid, default=None)
