"""What the sources that a limit counts take of the kernel's memory.

The kernel's other work comes and goes in the same slabs. So the sources are counted ahead of everything else, by the
very rule that the daemon wrote, put into a table of its own that drops whatever it is asked about; and only slabs that
grow by an object for nearly every source are taken, each time anew.
"""

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Final

from bench.forwards import PUBLIC
from bench.scene import Scene

# Nothing else is sent to this port (discard, RFC 863).
_PORT: Final = 9
_A_SECOND: Final = 100_000
# So much of the sources' number a slab has to grow by to be one that they are in.
_MOST_OF: Final = 0.8
# The kernel frees some of what is deleted a moment later.
_SETTLED_S: Final = 0.5
_RATE: Final = re.compile(r"update @(?P<set>rate\.\w+) (?P<counting>\{ ip saddr limit rate over 1/day [^}]*\})")
_HASHLIMIT: Final = re.compile(r"-m hashlimit --hashlimit-above 1/day .*?(?= -m comment| -j)")

Slabs = Mapping[str, tuple[int, int]]
"""By name, how many objects a slab has, and their size in bytes."""


def taken(scene: Scene, sources: int, counted: int, rounds: int, *, legacy: bool) -> list[float]:
    """Give the bytes that so many sources take that open a connection each, of which `counted` have room, each round.

    The scene's daemon has a forward with a rate of one a day. The first round only warms up.
    """
    counting = _in_legacy if legacy else _in_nftables
    grown = []
    for _ in range(1 + rounds):
        with counting(scene):
            before = _slabs()
            scene.traffic.flood(PUBLIC, _PORT, sources, sources, _A_SECOND)
            time.sleep(_SETTLED_S)
            grown.append(_grown(before, _slabs()))
        time.sleep(_SETTLED_S)
    names = [name for name in grown[0] if median(_objects(each, name) for each in grown[1:]) > _MOST_OF * counted]
    return [float(sum(number * size for number, size in map(each.__getitem__, names))) for each in grown[1:]]


def _objects(grown: Slabs, name: str) -> int:
    return grown.get(name, (0, 0))[0]


def _slabs() -> Slabs:
    """Read the machine's slabs, as slabinfo(5) has them."""
    lines = (line.split() for line in Path("/proc/slabinfo").read_text(encoding="ascii").splitlines()[2:])
    return {words[0]: (int(words[1]), int(words[3])) for words in lines}


def _grown(before: Slabs, after: Slabs) -> Slabs:
    return {name: (number - _objects(before, name), size) for name, (number, size) in after.items()}


@contextmanager
def _in_nftables(scene: Scene) -> Iterator[None]:
    """Count what goes to the port in a set like the daemon's, which goes in the end."""
    listing = scene.host.run("nft", "list", "table", "ip", "kvm_portfwd").stdout
    found = next(_RATE.finditer(listing))
    kind = next(re.finditer(rf"set {re.escape(found['set'])} \{{\n((?:\t\t(?!elements).*\n)+)", listing))
    way = f"ip daddr {PUBLIC} tcp dport {_PORT}"
    script = f"""table ip measured {{
    set {found["set"]} {{
{kind[1]}    }}
    chain before {{
        type filter hook prerouting priority -400
        {way} update @{found["set"]} {re.sub("packets 0 bytes 0 ", "", found["counting"])} drop
        {way} drop
    }}
}}
"""
    scene.host.run("nft", "-f", "-", stdin=script)
    try:
        yield
    finally:
        scene.host.run("nft", "delete", "table", "ip", "measured")


@contextmanager
def _in_legacy(scene: Scene) -> Iterator[None]:
    """Count what goes to the port by a rule like the daemon's, which goes in the end."""
    rules = scene.host.run("iptables-legacy", "-t", "mangle", "-S").stdout.splitlines()
    match = re.sub(r"kvmpf_\w+", "kvmpf_measured", next(filter(None, map(_HASHLIMIT.search, rules)))[0])
    way = ["-t", "raw", "-A", "PREROUTING", "-d", PUBLIC, "-p", "tcp", "--dport", str(_PORT)]
    scene.host.run("iptables-legacy", "-w", *way, *match.split(), "-j", "DROP")
    scene.host.run("iptables-legacy", "-w", *way, "-j", "DROP")
    try:
        yield
    finally:
        scene.host.run("iptables-legacy", "-w", "-t", "raw", "-F", "PREROUTING")
