"""A lab host: a Debian with a network of its own, a client outside it, a libvirtd and guests, all of them real."""

import itertools
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
from tests.lab.daemon import Daemon
from tests.lab.libvirtd import Libvirt
from tests.lab.place import own_python
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
        self, config: str, *, wait: bool = True, arguments: tuple[str, ...] = (), through: tuple[str, ...] = ()
    ) -> Daemon:
        """Write the configuration and start the daemon; with `wait`, return when it says that it is ready.

        `through` are the first words of a program that starts it in its own place.
        """
        self.write("/etc/portfwd.toml", config)
        daemon = Daemon(self.place, self.init, next(self._numbers), arguments, through)
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
        listed = self.run("pgrep", "-f", "--", "-m fwdaemon run", check=False).stdout
        return [int(word) for word in listed.split()]

    def close(self) -> None:
        """End every process in there and take everything away."""
        self._at_end.close()
        super().close()
