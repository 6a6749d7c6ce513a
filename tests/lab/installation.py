"""A computer on which `scripts/install` installs a copy of this checkout, and `scripts/uninstall` removes it."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from tests.lab.command import Completed, LabError
from tests.lab.computer import SOURCE, Computer
from tests.lab.online import Online, online

CONFIG = "/etc/portfwd.toml"
UNIT_FILE = "/usr/local/lib/systemd/system/kvm-portfwd.service"
_CHECKOUT = "/root/checkout"
_PARTS = (
    *(".gitignore", "CHANGELOG.md", "LICENSE", "README.md", "completion", "docs", "etc", "fwdaemon", "man"),
    *("pyproject.toml", "scripts", "systemd"),
)
# Where an installation could leave something; the rest of /usr is large on some machines.
_PLACES = (
    *("/etc", "/opt", "/usr/bin", "/usr/lib/python3", "/usr/lib/systemd", "/usr/lib/tmpfiles.d", "/usr/local"),
    *("/usr/sbin", "/var/lib"),
)
_APART = ("/var/lib/apt", "/var/lib/dpkg", "/var/lib/libvirt", "/var/lib/systemd/timers")


class Installation:
    """The scripts on a computer that is online."""

    def __init__(self, computer: Computer, there: Online) -> None:
        self.there = there
        self._computer = computer

    def install(self, *environment: str, check: bool = True) -> Completed:
        """Run `scripts/install`; `environment` is of the form `PYTHON=/bin/false`."""
        return self.there.run("env", *environment, f"{_CHECKOUT}/scripts/install", check=check)

    def uninstall(self, *words: str, check: bool = True) -> Completed:
        """Run `scripts/uninstall` in the computer's own network."""
        return self._computer.run(f"{_CHECKOUT}/scripts/uninstall", *words, check=check)

    def run_as_nobody(self, script: str) -> Completed:
        """Run `scripts/install` or `scripts/uninstall` as a user without rights."""
        script_only = f"exec setpriv --reuid=65534 --clear-groups sh -s <{_CHECKOUT}/scripts/{script}"
        return self.there.run("sh", "-c", script_only, check=False)

    def provide(self) -> None:
        """Install the packages that `scripts/install` says are missing, by the command it names."""
        done = self.install(check=False)
        asked = re.search(r"^ +on Debian: +(apt-get install .*)$", done.stderr, re.MULTILINE)
        if asked is None:
            raise LabError(f"scripts/install named no packages, but ended with {done.returncode}: {done.stderr}")
        self.there.run("apt-get", "-q", "update")
        self.there.run("env", "DEBIAN_FRONTEND=noninteractive", *asked[1].split(), "--yes", "-q")

    def files(self) -> set[str]:
        """Every file of the computer, with its mode, owner, size and where it leads."""
        apart = [word for path in _APART for word in ("-path", path, "-prune", "-o")]
        forms = ("-type", "d", "-printf", "%p/ %M %U\n", "-o", "-printf", "%p %M %U %s %l\n")
        return set(self._computer.run("find", *_PLACES, "-xdev", *apart, *forms).stdout.splitlines())


@contextmanager
def installable(computer: Computer) -> Iterator[Installation]:
    """Copy the checkout to a computer; nothing is installed there yet, nor afterwards."""
    with online(computer) as there:
        there.copy(SOURCE, _PARTS, _CHECKOUT)
        # The database is made anew after each change of the catalog, here for the first time.
        there.run("journalctl", "--update-catalog")
        installation = Installation(computer, there)
        try:
            yield installation
        finally:
            installation.uninstall("--purge")
            there.run("rm", "-r", _CHECKOUT)
