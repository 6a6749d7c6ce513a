"""A lab host: a Debian with a network of its own, a client outside it, a libvirtd and guests, all of them real."""

import itertools
import re
import select
import subprocess
import sys
import time
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.lab import image
from tests.lab.command import Completed, LabError
from tests.lab.daemon import Daemon
from tests.lab.libvirtd import Libvirt
from tests.lab.place import Place, Process, own_python
from tests.lab.release import Flavour, own_release
from tests.lab.rules import foreign_rules, own_rules

SOURCE = Path(__file__).parents[2]
_LAB = SOURCE / "tests/lab"
_BOOT_TIMEOUT = 20.0

# Fixed by boot.sh.
PUBLIC4, PUBLIC4_SECOND = "198.51.100.1", "198.51.100.7"
PUBLIC6, PUBLIC6_SECOND = "2001:db8::1", "2001:db8::7"
OTHER_LINK4, OTHER_LINK6 = "198.51.101.1", "2001:db8:101::1"
CLIENT4, CLIENT4_SECOND, CLIENT4_OTHER_LINK = "198.51.100.2", "203.0.113.9", "198.51.101.2"
CLIENT6, CLIENT6_SECOND, CLIENT6_OTHER_LINK = "2001:db8::2", "2001:db8:9::9", "2001:db8:101::2"


class Host:
    """A booted host; a context manager that takes everything away again.

    `place` is the host itself, `outside` the client's side of its links, `libvirt` its libvirtd.
    """

    def __init__(self, flavour: Flavour, keeper: "subprocess.Popen[str]", init: int) -> None:
        self.flavour = flavour
        self.init = init
        self._keeper = keeper
        self._at_end = ExitStack()
        self._numbers = itertools.count(1)
        own = flavour.release is own_release()
        self.python = own_python() if own else "/usr/bin/python3"
        self.place = self._place(Path(f"/proc/{init}/ns/net"))
        self.outside = self._place(Path(f"/proc/{init}/root/run/netns/outside"))

    @classmethod
    def boot(cls, flavour: Flavour) -> "Host":
        """Boot a host of that flavour; libvirtd does not run yet."""
        visible = [SOURCE, image.CACHE, Path(sys.prefix), Path(sys.base_prefix)]
        shown = [str(path) for path in visible if path.is_dir() and not path.is_relative_to("/usr")]
        lower = image.release_root(flavour.release)
        keeper = subprocess.Popen(  # noqa: S603  the lab chose the words
            [own_python(), "-I", str(_LAB / "keeper.py"), "/bin/sh", str(_LAB / "boot.sh"), str(lower), *shown],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            host = cls(flavour, keeper, _wait_ready(keeper))
            host.libvirt.prepare()
        except BaseException:
            _end(keeper)
            raise
        return host

    @property
    def keeper_pid(self) -> int:
        """The process that tidies up when the host ends."""
        return self._keeper.pid

    def _place(self, namespace: Path, pids: Path | None = None) -> Place:
        return Place(namespace, self.init, self.python, SOURCE, pids)

    @cached_property
    def libvirt(self) -> Libvirt:
        """The host's libvirtd."""
        return Libvirt(self.place, self.init, self.flavour.firewall)

    def guest_place(self, pid: int) -> Place:
        """The network of the guest whose PID 1 is `pid` by the host's own numbers."""
        spaces = Path(f"/proc/{self.init}/root/proc/{pid}/ns")
        return self._place(spaces / "net", spaces / "pid")

    def run(self, *argv: str, stdin: str = "", check: bool = True, timeout: float = 60) -> Completed:
        """Run a program on the host."""
        return self.place.run(argv, stdin=stdin, check=check, timeout=timeout)

    def popen(self, *argv: str) -> Process:
        """Start a program on the host that keeps running."""
        return self.place.popen(argv)

    def write(self, path: str, text: str) -> None:
        """Write a file of the host, from inside.

        Through /proc/PID/root an absolute symbolic link would lead to a file of the machine.
        """
        self.run("sh", "-c", 'mkdir -p "${1%/*}" && cat >"$1"', "sh", path, stdin=text)

    def read(self, path: str) -> str:
        """Read a file of the host."""
        return self.run("cat", path).stdout

    def daemon(self, config: str, *, wait: bool = True, arguments: tuple[str, ...] = ()) -> Daemon:
        """Write the configuration and start the daemon; with `wait`, return when it says that it is ready."""
        self.write("/etc/portfwd.toml", config)
        daemon = Daemon(self.place, self.init, next(self._numbers), arguments)
        self._at_end.callback(daemon.close)
        if wait:
            daemon.wait_ready()
        return daemon

    def _listings(self) -> tuple[str, str]:
        legacy = self.run("iptables-legacy-save").stdout + self.run("ip6tables-legacy-save").stdout
        return self.run("nft", "--stateless", "list", "ruleset").stdout, legacy

    def snapshot_foreign(self) -> str:
        """Everybody else's rules as text without counters, to be compared byte for byte."""
        return foreign_rules(*self._listings())

    def own_rules(self) -> str:
        """The rules this project left in the kernel; empty when it left none."""
        return own_rules(*self._listings())

    def daemons(self) -> list[int]:
        """Process numbers, by the host's own count, of every running daemon of this project."""
        listed = self.run("pgrep", "-f", "--", "-m fwdaemon run", check=False).stdout
        return [int(word) for word in listed.split()]

    def enter_command(self, namespace: str = "") -> str:
        """What a person types to look around in there."""
        spaces = f"nsenter --target {self.init} --mount --uts --ipc --net --pid --cgroup --root --wd"
        return f"{spaces} {f'ip netns exec {namespace} ' if namespace else ''}bash"

    def close(self) -> None:
        """End every process in there and take everything away."""
        self._at_end.close()
        _end(self._keeper)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _wait_ready(keeper: "subprocess.Popen[str]") -> int:
    assert keeper.stdout is not None
    deadline = time.monotonic() + _BOOT_TIMEOUT
    output = select.poll()
    output.register(keeper.stdout, select.POLLIN | select.POLLHUP)
    while output.poll(1000 * max(0.0, deadline - time.monotonic())):
        line = keeper.stdout.readline()
        if found := re.fullmatch(r"ready (\d+)\n", line):
            return int(found[1])
        if not line:
            raise LabError(f"the host did not boot; its keeper ended with status {keeper.wait()}")
    raise LabError(f"the host did not boot within {_BOOT_TIMEOUT:g} s")


def _end(keeper: "subprocess.Popen[str]") -> None:
    """Closing the pipe ends PID 1, and with it everything inside; the keeper tidies up after it."""
    assert keeper.stdin is not None
    assert keeper.stdout is not None
    keeper.stdin.close()
    keeper.wait(30)
    keeper.stdout.close()
