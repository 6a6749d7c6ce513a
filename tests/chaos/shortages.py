"""What a host can be short of, and how it comes to be: room, threads, descriptors, locks, a journal that reads, time.

A shortage begins and ends by an action each, with whatever is drawn in between.
"""

import re
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address

from tests.chaos.listing import NFT
from tests.chaos.stage import STATE, Stage
from tests.lab.command import LabError
from tests.lab.connections import Connection, Tuple, track
from tests.lab.place import Process

_MANY = 100_000
_GROUP = "$([ -d /sys/fs/cgroup/pids ] && echo /sys/fs/cgroup/pids || echo /sys/fs/cgroup)/short"
# Less than any daemon has open, so none more can be had.
_FEW_DESCRIPTORS = 10
_JOURNAL = "/run/systemd/journal/socket"
_HOLD = "exec 9>>/run/xtables.lock && flock 9 && echo ready && exec sleep 9999"
_NFT, _AWAY = "/usr/sbin/nft", "/usr/sbin/nft.away"
_SLOW = f'#!/bin/sh\nsleep 0.5\nexec {_AWAY} "$@"\n'
# Connections of others, which come from there and go past the host.
_OTHERS, _SERVER = "10.0.0.0", "192.0.2.1"
_TRACKED, _SHOWN = re.compile(rf" src={re.escape(_SERVER)} dst=(10\.\S+)"), 10
_LISTED = re.compile(r"(?<![\d.])10\.\d+\.\d+\.\d+")
_CROWD = """
table ip lab_crowd {{
    set listed {{ type ipv4_addr; elements = {{ {elements} }}; }}
    chain forward {{ type filter hook forward priority 5; policy accept; ip saddr @listed counter drop; }}
}}
"""


@dataclass(frozen=True, slots=True)
class Shortage:
    """`begin` brings it about, `end` ends it."""

    begin: Callable[[], None]
    end: Callable[[], None]


class Shortages:
    """All of them, on one stage."""

    def __init__(self, stage: Stage) -> None:
        self._stage, self._host = stage, stage.host
        self._holder: Process | None = None
        self._descriptors = ""
        self.all: dict[str, Shortage] = {
            "run": Shortage(lambda: self._fill("/run"), lambda: self._free("/run")),
            "var": Shortage(lambda: self._fill(STATE), lambda: self._free(STATE)),
            "threads": Shortage(self._take_threads, self._give_threads),
            "descriptors": Shortage(self._take_descriptors, self._give_descriptors),
            "journal": Shortage(self._stop_journal, lambda: stage.journal.send(signal.SIGCONT)),
            "lock": Shortage(self._hold_lock, self._release_lock),
            "nft": Shortage(lambda: self._move_nft(_NFT, _AWAY), lambda: self._move_nft(_AWAY, _NFT)),
            "nft-time": Shortage(self._slow_nft, lambda: self._move_nft(_AWAY, _NFT)),
            "connections": Shortage(self._track, self._forget),
            "elements": Shortage(self._load_crowd, self._unload_crowd),
        }

    def _fill(self, path: str) -> None:
        used = self._host.run("df", "--output=used", "-k", path).stdout.split()[-1]
        # No size at all means without a limit.
        self._host.run("mount", "-o", f"remount,size={max(int(used), 4)}k", path)
        self._host.run("sh", "-c", f"cat /dev/zero >{path}/lab-fill 2>/dev/null", check=False)

    def _free(self, path: str) -> None:
        self._host.run("mount", "-o", "remount,size=64m", path)
        self._host.run("rm", "-f", f"{path}/lab-fill")

    def _take_threads(self) -> None:
        """Let the daemon and its helpers start no thread and no process."""
        (pid,) = self._host.daemons()
        self._host.run(
            "sh", "-c", f"mkdir -p {_GROUP} && echo 1 >{_GROUP}/pids.max && echo {pid} >{_GROUP}/cgroup.procs"
        )

    def _give_threads(self) -> None:
        self._host.run("sh", "-c", f"echo max >{_GROUP}/pids.max")

    def _take_descriptors(self) -> None:
        """Let the daemon open nothing."""
        show = ("prlimit", "--nofile", "--raw", "--noheadings", "--output=SOFT", "--pid")
        (pid,) = self._host.daemons()
        self._descriptors = self._host.run(*show, str(pid)).stdout.strip()
        self._limit(str(_FEW_DESCRIPTORS))

    def _give_descriptors(self) -> None:
        self._limit(self._descriptors)

    def _limit(self, descriptors: str) -> None:
        (pid,) = self._host.daemons()
        self._host.run("prlimit", f"--nofile={descriptors}:", "--pid", str(pid))

    def _stop_journal(self) -> None:
        """Have the journal read nothing, and fill what the kernel keeps for it."""
        self._stage.journal.send(signal.SIGSTOP)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as junk, suppress(OSError):
            junk.settimeout(0)
            junk.connect(f"/proc/{self._host.init}/root{_JOURNAL}")
            while True:
                junk.send(b"MESSAGE=chaos\n")

    def _hold_lock(self) -> None:
        self._holder = self._host.popen("sh", "-c", _HOLD)
        self._holder.wait_line("^ready$")

    def _release_lock(self) -> None:
        assert self._holder is not None
        self._holder.stop()

    def _move_nft(self, source: str, target: str) -> None:
        self._host.run("mv", source, target)

    def _slow_nft(self) -> None:
        self._move_nft(_NFT, _AWAY)
        self._host.run("sh", "-c", f"cat >{_NFT}.new && chmod 755 {_NFT}.new && mv {_NFT}.new {_NFT}", stdin=_SLOW)

    def _track(self) -> None:
        """Have the kernel track connections of others, with as many clients."""
        first = IPv4Address(_OTHERS)
        track((_connection(str(first + number)) for number in range(_MANY)), self._host.place.namespace)

    def _forget(self) -> None:
        """Have it forget them again, all of which must still be there; a listing may pass over a few that are moved."""
        words = ("conntrack", "-D", "-f", "ipv4", "--orig-src", _OTHERS, "--mask-src", "255.0.0.0")
        found: set[str] = set()
        while gone := _TRACKED.findall(self._host.run(*words, check=False).stdout):
            found.update(gone)
        first = IPv4Address(_OTHERS)
        if missing := [str(first + number) for number in range(_MANY) if str(first + number) not in found]:
            raise LabError(f"{len(missing)} connections of others were ended, as those of {missing[:_SHOWN]}")

    def _load_crowd(self) -> None:
        elements = ", ".join(str(IPv4Address(_OTHERS) + number) for number in range(_MANY))
        self._host.run(NFT, "-f", "-", stdin=_CROWD.format(elements=elements))

    def _unload_crowd(self) -> None:
        listed = self._host.run(NFT, "list", "table", "ip", "lab_crowd").stdout
        if (found := len(_LISTED.findall(listed))) != _MANY or "@listed" not in listed:
            raise LabError(f"a table of others holds {found} elements, of {_MANY}")
        self._host.run(NFT, "delete", "table", "ip", "lab_crowd")


def _connection(client: str) -> Connection:
    return Connection("tcp", Tuple(client, _SERVER, 40000, 443), Tuple(_SERVER, client, 443, 40000))
