"""A lab host: a Debian with a network of its own, a client outside it, a libvirtd and guests, all of them real."""

import itertools
from collections.abc import Mapping
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path

from tests.lab import image
from tests.lab.command import Completed
from tests.lab.commands import Commands
from tests.lab.computer import (
    CLIENT4,
    CLIENT4_OTHER_LINK,
    CLIENT4_SECOND,
    CLIENT6,
    CLIENT6_OTHER_LINK,
    CLIENT6_SECOND,
    LAB,
    OTHER_LINK4,
    OTHER_LINK6,
    PUBLIC4,
    PUBLIC4_SECOND,
    PUBLIC6,
    PUBLIC6_SECOND,
    SOURCE,
    Computer,
    Keeper,
    shown_directories,
)
from tests.lab.daemon import CONFIG, Daemon
from tests.lab.libvirtd import Libvirt
from tests.lab.place import Process, own_python
from tests.lab.release import Flavour, own_release

__all__ = [
    "CLIENT4",
    "CLIENT4_OTHER_LINK",
    "CLIENT4_SECOND",
    "CLIENT6",
    "CLIENT6_OTHER_LINK",
    "CLIENT6_SECOND",
    "OTHER_LINK4",
    "OTHER_LINK6",
    "PUBLIC4",
    "PUBLIC4_SECOND",
    "PUBLIC6",
    "PUBLIC6_SECOND",
    "SOURCE",
    "Host",
]


class Host(Computer):
    """A booted host. `libvirt` is its libvirtd, which the lab starts and stops itself."""

    def __init__(self, flavour: Flavour, keeper: Keeper, init: int) -> None:
        own = flavour.release is own_release()
        super().__init__(flavour, keeper, own_python() if own else "/usr/bin/python3")
        self._booted(init, Path(f"/proc/{init}/root/run/netns/outside"))
        self._at_end = ExitStack()
        self._numbers = itertools.count(1)

    @classmethod
    def boot(cls, flavour: Flavour) -> "Host":
        """Boot a host of that flavour; libvirtd does not run yet."""
        keeper = Keeper(LAB / "boot.sh", image.release_root(flavour.release), *shown_directories())
        try:
            host = cls(flavour, keeper, keeper.wait_ready())
            image.compile_for(flavour.release, SOURCE, host.python)
            host.libvirt.prepare()
        except BaseException:
            keeper.end()
            raise
        return host

    @cached_property
    def libvirt(self) -> Libvirt:
        """The host's libvirtd."""
        return Libvirt(self.place, self.init, self.flavour.firewall)

    def daemon(
        self,
        config: str,
        *,
        wait: bool = True,
        arguments: tuple[str, ...] = (),
        through: tuple[str, ...] = (),
        forked: bool = False,
    ) -> Daemon:
        """Write the configuration and start the daemon; with `wait`, return when it says that it is ready.

        `through` are the first words of a program that starts it in its own place. With `forked`, it is forked from the
        process that has loaded its modules already, and differs from another one by what it shares of its memory alone.
        """
        self.write(CONFIG, config)
        words = ("run", "--config", CONFIG, *arguments)

        def start(environment: Mapping[str, str]) -> Process:
            if forked:
                return self._commands.start(words, self.place.environment(environment))
            return self.place.popen([*through, self.python, "-m", "fwdaemon", *words], env=environment)

        daemon = Daemon(self.place, self.init, next(self._numbers), start)
        self._at_end.callback(daemon.close)
        if wait:
            daemon.wait_ready()
        return daemon

    @cached_property
    def _commands(self) -> Commands:
        return Commands(self.place, self.init)

    def portfwd(self, *words: str, stdin: str = "", check: bool = True) -> Completed:
        """Run a command of this project's program on it, as `python -m fwdaemon` would."""
        return self._commands.run(*words, stdin=stdin, check=check)

    def daemons(self) -> list[int]:
        """Process numbers, by the host's own count, of every running daemon of this project."""
        return sorted(int(path.parent.name) for path in self._processes.glob("[0-9]*/cmdline") if _is_daemon(path))

    @property
    def _processes(self) -> Path:
        return Path(f"/proc/{self.init}/root/proc")

    def close(self) -> None:
        """End every process in there and take everything away."""
        self._at_end.close()
        super().close()


def _is_daemon(command_line: Path) -> bool:
    try:
        return b"\0-m\0fwdaemon\0run\0" in command_line.read_bytes()
    except OSError:  # it ended
        return False
