"""What the benchmark ran on: the machine, and the versions on its hosts."""

import os
import platform
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from fwdaemon import __version__
from tests.lab.command import run
from tests.lab.host import SOURCE, Host
from tests.lab.release import Flavour

_VERSIONS = (
    ("nft", "--version"),
    ("iptables", "--version"),
    ("libvirtd", "--version"),
    ("python3", "--version"),
)
_GIB = 1024**3


def facts(flavours: Iterable[Flavour]) -> dict[str, str]:
    """Ask the machine, and a host of each kind; the load is that of the moment."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "when": datetime.now(tz=UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "kvm-portfwd": f"{__version__}, {_commit()}",
        "processor": f"{os.cpu_count()} cores, {_processor()}",
        "memory": f"{memory / _GIB:.0f} GiB",
        "kernel": platform.release(),
        "load at the beginning": loads(),
        "Python of the daemon": platform.python_version(),
        **{str(flavour): _versions(flavour) for flavour in flavours},
    }


def loads() -> str:
    """Give how many processes ran or wanted to, on average over the last one, five and fifteen minutes."""
    return " ".join(f"{load:.2f}" for load in os.getloadavg())


class Steal:
    """What the hypervisor gives to others of the time of this machine's processors, from now on."""

    def __init__(self) -> None:
        self._before = _times()

    def share(self) -> str:
        """Tell it as a share of all their time, idle or not."""
        stolen, every = (now - before for now, before in zip(_times(), self._before, strict=True))
        return f"{stolen / max(every, 1):.1%}"


def _times() -> tuple[int, int]:
    """Time stolen, and all of it, as proc(5) has it in /proc/stat; that of guests of ours is counted as ours."""
    with Path("/proc/stat").open(encoding="ascii") as stat:
        columns = [int(word) for word in stat.readline().split()[1:9]]
    return columns[7], sum(columns)


def _commit() -> str:
    """What git calls the work tree; `--dirty` where files differ from it."""
    words = ["git", "-C", str(SOURCE), "describe", "--always", "--dirty"]
    return run(words, check=False).stdout.strip() or "unknown commit"


def _processor() -> str:
    """As proc(5) names it, which not every architecture does."""
    found = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else platform.machine()


def _versions(flavour: Flavour) -> str:
    with Host.boot(flavour) as host:
        return ", ".join(host.run(*words).stdout.strip() for words in _VERSIONS)
