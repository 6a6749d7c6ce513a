"""What lab hosts and whole machines have in common: a Debian with a network of its own, and a client outside it."""

import re
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.lab import image
from tests.lab.command import Completed, LabError
from tests.lab.libvirt_client import LibvirtClient
from tests.lab.place import Place, Process, own_python
from tests.lab.release import Flavour
from tests.lab.rules import foreign_rules, own_rules

SOURCE = Path(__file__).parents[2]
LAB = SOURCE / "tests/lab"
_BOOT_TIMEOUT = 60.0
_POLL_MS = 200
# One program that runs these takes half as long as three.
_APART = "--- the legacy tables"
_LISTINGS = f"nft --stateless list ruleset; echo '{_APART}'; iptables-legacy-save; ip6tables-legacy-save"

# Fixed by links.host and links.outside.
PUBLIC4, PUBLIC4_SECOND = "198.51.100.1", "198.51.100.7"
PUBLIC6, PUBLIC6_SECOND = "2001:db8::1", "2001:db8::7"
OTHER_LINK4, OTHER_LINK6 = "198.51.101.1", "2001:db8:101::1"
CLIENT4, CLIENT4_SECOND, CLIENT4_OTHER_LINK = "198.51.100.2", "203.0.113.9", "198.51.101.2"
CLIENT6, CLIENT6_SECOND, CLIENT6_OTHER_LINK = "2001:db8::2", "2001:db8:9::9", "2001:db8:101::2"


class Keeper:
    """The process that starts a computer's namespaces, and tidies up when its owner is gone; see keeper.py."""

    def __init__(self, script: Path, flavour_root: Path, *shown: Path) -> None:
        # What is below /usr comes with the Debian.
        visible = [str(path) for path in shown if path.is_dir() and not path.is_relative_to("/usr")]
        self._process = subprocess.Popen(  # noqa: S603  the lab chose the words
            [own_python(), "-I", str(LAB / "keeper.py"), "/bin/sh", str(script), str(flavour_root), *visible],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """Its process number."""
        return self._process.pid

    def wait_ready(self, timeout: float = _BOOT_TIMEOUT, meanwhile: Callable[[], None] | None = None) -> int:
        """The process number of the computer's next PID 1; waits until it says that it is ready."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + timeout
        output = select.poll()
        output.register(self._process.stdout, select.POLLIN | select.POLLHUP)
        while time.monotonic() < deadline:
            if meanwhile is not None:
                meanwhile()
            if not output.poll(_POLL_MS):
                continue
            line = self._process.stdout.readline()
            if found := re.fullmatch(r"ready (\d+)\n", line):
                return int(found[1])
            if not line or line.startswith("ended "):
                raise LabError(f"the computer did not boot: {line.strip() or 'its keeper ended'}")
        raise LabError(f"the computer did not boot within {timeout:g} s")

    def end(self) -> None:
        """Closing the pipe ends PID 1, and with it everything inside; the keeper tidies up after it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()


def shown_directories() -> tuple[Path, ...]:
    """Where this project's code, its interpreter and the lab's downloads are."""
    return (SOURCE, image.CACHE, Path(sys.prefix), Path(sys.base_prefix))


class Computer:
    """A booted Debian; a context manager that takes everything away again.

    `init` is its PID 1 by the numbers of the machine the lab runs on, `place` the computer itself, `outside` the
    client's side of its links, `python` an interpreter for programs of the lab.
    """

    def __init__(self, flavour: Flavour, keeper: Keeper, python: str) -> None:
        self.flavour = flavour
        self.python = python
        self._keeper = keeper

    def _booted(self, init: int, outside: Path) -> None:
        """Take note of its PID 1 and of the network namespace outside."""
        self.init = init
        self.place = self._place(Path(f"/proc/{init}/ns/net"))
        self.outside = self._place(outside)

    @property
    def keeper_pid(self) -> int:
        """The process that tidies up when the computer ends."""
        return self._keeper.pid

    def _place(self, namespace: Path, pids: Path | None = None) -> Place:
        return Place(namespace, self.init, self.python, SOURCE, pids)

    @property
    def libvirt(self) -> LibvirtClient:
        """Its libvirt."""
        raise NotImplementedError

    def guest_place(self, pid: int) -> Place:
        """The network of the guest whose PID 1 is `pid` by the computer's own numbers."""
        spaces = Path(f"/proc/{self.init}/root/proc/{pid}/ns")
        return self._place(spaces / "net", spaces / "pid")

    def run(self, *argv: str, stdin: str = "", check: bool = True, timeout: float = 60) -> Completed:
        """Run a program on it."""
        return self.place.run(argv, stdin=stdin, check=check, timeout=timeout)

    def popen(self, *argv: str) -> Process:
        """Start a program on it that keeps running."""
        return self.place.popen(argv)

    def write(self, path: str, text: str) -> None:
        """Write a file of it, from inside.

        Through /proc/PID/root an absolute symbolic link would lead to a file of the lab's own machine.
        Only root can write it, whatever the umask here is.
        """
        self.run("sh", "-c", 'umask 022 && mkdir -p "${1%/*}" && cat >"$1"', "sh", path, stdin=text)

    def read(self, path: str) -> str:
        """Read a file of it."""
        return self.run("cat", path).stdout

    def _listings(self) -> tuple[str, str]:
        nft, _, legacy = self.run("sh", "-ec", _LISTINGS).stdout.partition(f"{_APART}\n")
        return nft, legacy

    def snapshot_foreign(self) -> str:
        """Everybody else's rules as text without counters, to be compared byte for byte."""
        return foreign_rules(*self._listings())

    def own_rules(self) -> str:
        """The rules this project left in the kernel; empty when it left none."""
        return own_rules(*self._listings())

    def enter_command(self, namespace: str = "") -> str:
        """What a person types to look around in there."""
        spaces = f"nsenter --target {self.init} --mount --uts --ipc --net --pid --cgroup --root --wd"
        return f"{spaces} {f'ip netns exec {namespace} ' if namespace else ''}bash"

    def close(self) -> None:
        """End every process in there and take everything away."""
        self._keeper.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
