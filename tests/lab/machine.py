"""A whole machine: a Debian with systemd, its journal, D-Bus and libvirt's services, that can be rebooted."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Self

from tests.lab import image
from tests.lab.command import Completed, LabError
from tests.lab.computer import LAB, SOURCE, Computer, Keeper
from tests.lab.keeper import parent_of, signal_entrances
from tests.lab.libvirt_client import LibvirtClient
from tests.lab.place import wait_until
from tests.lab.release import DEBIAN12_IPTABLES, DEBIAN13_NFTABLES, Flavour

# As the images come; another firewall of libvirt's is set after the boot.
AS_INSTALLED = (DEBIAN12_IPTABLES, DEBIAN13_NFTABLES)
UNIT = "kvm-portfwd.service"
_BOOT_TIMEOUT = 60.0
_SHUTDOWN_TIMEOUT = 120.0
# systemd gives up on a service that does not start or stop after one and a half minutes, and says why.
_JOB_TIMEOUT = 200.0

Entry = dict[str, str]


class MachineLibvirt(LibvirtClient):
    """libvirtd as a service of systemd's."""

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self._place.run(["systemctl", "start", "libvirtd.service"], timeout=_JOB_TIMEOUT)
        self._wait()

    def stop(self) -> None:
        """Stop it with its sockets, so that no client starts it by asking. Guests and networks stay."""
        # The sockets first: a client that is back at once would start the service by them again, and systemd does
        # not listen anew for a service that runs.
        for units in ([f"libvirtd{kind}.socket" for kind in ("", "-ro", "-admin")], ["libvirtd.service"]):
            self._place.run(["systemctl", "stop", *units], timeout=_JOB_TIMEOUT)

    def restart(self) -> None:
        """Stop it and start it again, and wait until it answers."""
        self._place.run(["systemctl", "restart", "libvirtd.service"], timeout=_JOB_TIMEOUT)
        self._wait()

    def kill(self) -> None:
        """SIGKILL: a crash. systemd starts it again."""
        self._place.run(["systemctl", "kill", "--kill-whom=main", "--signal=KILL", "libvirtd.service"])

    def _wait(self) -> None:
        wait_until(lambda: self.answers, "libvirtd answers")


class Machine(Computer):
    """A booted machine. What is written to it outlasts `reboot` and goes with `close`.

    Of this project's files it sees the tests only, so what runs there is what was installed on it.
    """

    @classmethod
    def boot(cls, flavour: Flavour) -> Self:
        """Boot a machine, and wait until systemd has started everything."""
        keeper = Keeper(LAB / "machine/world.sh", image.machine_root(flavour.release), SOURCE / "tests", image.CACHE)
        try:
            machine = cls(flavour, keeper, "/usr/bin/python3")
            machine._wait_booted(_BOOT_TIMEOUT)
            if flavour not in AS_INSTALLED:
                machine.libvirt.move_to(flavour.firewall)
        except BaseException:
            keeper.end()
            raise
        return machine

    def _wait_booted(self, timeout: float, meanwhile: Callable[[], None] | None = None) -> None:
        init = self._keeper.wait_ready(timeout, meanwhile)
        # What started its namespaces is in the network outside.
        self._booted(init, Path(f"/proc/{parent_of(init)}/ns/net"))
        wait_until(self._settled, "systemd has started everything", timeout=_BOOT_TIMEOUT, interval=0.1)

    def _settled(self) -> bool:
        state = self.run("systemctl", "is-system-running", "--wait", check=False).stdout.strip()
        if state == "degraded":
            failed = self.run("systemctl", "--failed", "--no-legend", "--plain").stdout
            raise LabError(f"the machine booted, but failed to start\n{failed}")
        return state == "running"

    @property
    def libvirt(self) -> MachineLibvirt:
        """Its libvirt; another one after each boot."""
        return MachineLibvirt(self.place, self.init)

    def reboot(self) -> None:
        """Shut it down as an administrator would, and wait until it is up again."""
        init = self.init
        self.run("systemctl", "reboot", check=False)
        # systemd stops all processes before it ends them, and with those what entered their namespaces.
        self._wait_booted(_SHUTDOWN_TIMEOUT, lambda: signal_entrances(init, signal.SIGCONT))

    def systemctl(self, *words: str, check: bool = True) -> str:
        """What systemctl prints, without the white space around it."""
        return self.run("systemctl", *words, check=check, timeout=_JOB_TIMEOUT).stdout.strip()

    def property(self, name: str, unit: str = UNIT) -> str:
        """A property of a unit, such as MainPID, NRestarts, Result or ActiveState."""
        return self.systemctl("show", "--property", name, "--value", unit)

    def daemons(self) -> list[int]:
        """Process numbers, by the machine's own count, of daemons that systemd did not start."""
        main = self.property("MainPID")
        listed = self.run("ps", "-e", "-o", "pid=,ppid=,args=").stdout.splitlines()
        found = [line.split(None, 2) for line in listed if "kvm-portfwd run" in line]
        # A child of the service has its name until it runs its own program.
        return [int(pid) for pid, parent, _ in found if main not in (pid, parent)]

    def journal(self, *words: str) -> list[Entry]:
        """The journal's entries that match `FIELD=value`, `--unit=…` and the like, the oldest first."""
        listed = self.run("journalctl", "--output=json", "--no-pager", "--quiet", *words).stdout
        return [json.loads(line) for line in listed.splitlines()]

    def install(self, package: Path) -> Completed:
        """Install a .deb over what is there, as `apt install ./FILE` would: questions are answered with what is."""
        target = f"/var/cache/apt/archives/{package.name}"
        shutil.copyfile(package, f"/proc/{self.init}/root{target}")
        words = ["env", "DEBIAN_FRONTEND=noninteractive", "dpkg", "--force-confold", "--install", target]
        return self.run(*words, timeout=_JOB_TIMEOUT)
