"""Our part of the kernel's rules, as it was found, and what to look for. Plain data."""

from dataclasses import dataclass

from fwdaemon.config.model import Gate
from fwdaemon.model import Family
from fwdaemon.nftables.gates import GateState
from fwdaemon.nftables.model import Table


@dataclass(frozen=True, slots=True)
class Observed:
    """Our part of the kernel's rules at one generation.

    `gates` are the foreign chains that exist and are to have a gate, `strays` those that hold a rule of ours without
    reason; not `searched` if those could not be looked for. `faults` are sentences about what could not be read.
    `libvirt` says whether libvirt's own rules were seen, `listed` is false where it follows from what we committed
    since the last listing.
    """

    generation: int
    tables: dict[Family, Table]
    gates: tuple[GateState, ...]
    strays: tuple[GateState, ...]
    faults: tuple[str, ...]
    libvirt: bool = False
    listed: bool = True
    searched: bool = True


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to look for: gates of the families that have openings, with this mark, in these further chains too."""

    families: frozenset[Family]
    configured: tuple[Gate, ...]
    mark: int
