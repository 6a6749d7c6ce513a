"""What a figure is measured with: which host, and how patiently."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from bench.scene import Scene, booted
from tests.lab.host import Host
from tests.lab.release import Flavour, LibvirtFirewall


@dataclass(frozen=True, slots=True)
class Setting:
    """One kind of host; `quick` asks for few runs and few forwards. `program` is the compiled `traffic.c`.

    With `most`, there are no more runs than that, and as many forwards as ever.
    """

    flavour: Flavour
    program: Path
    quick: bool
    most: int | None = None

    @property
    def legacy(self) -> bool:
        """Whether our rules are in iptables-legacy there."""
        return self.flavour.firewall is LibvirtFirewall.LEGACY

    def scene(self, *, mode: str = "nat") -> AbstractContextManager[Scene]:
        """Boot a host with its guests; `mode` is that of libvirt's network."""
        return booted(self.flavour, self.program, mode=mode)

    def runs(self, full: Mapping[int, int], quick: Mapping[int, int]) -> Mapping[int, int]:
        """Choose how many runs for each number of forwards."""
        chosen = quick if self.quick else full
        return {size: self.at_most(count) for size, count in chosen.items()}

    def at_most(self, runs: int) -> int:
        """Give so many runs, or fewer where that is asked for."""
        return runs if self.most is None else min(runs, self.most)


def take_turns(runs: Mapping[int, int], once: Callable[[int], float]) -> dict[int, list[float]]:
    """Call `once` for each number of forwards in turn, so many times; the samples. The first turn only warms up."""
    samples: dict[int, list[float]] = {size: [] for size in runs}
    for turn in range(1 + max(runs.values())):
        for size in [size for size, count in runs.items() if turn <= count]:
            sample = once(size)
            samples[size] += [sample] if turn else []
    return samples


def inside(host: Host, module: str, *words: str, timeout: float = 600) -> str:
    """Run a module of the benchmark on the host; what it printed."""
    return host.run(host.python, "-m", f"bench.{module}", *words, timeout=timeout).stdout
