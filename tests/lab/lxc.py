"""LXC guests: real domains that start in a tenth of a second. A page on ports 80, 443 and 8080 says who asked."""

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import ClassVar, Self

import libvirt

from tests.lab.command import Completed, LabError
from tests.lab.computer import SOURCE, Computer
from tests.lab.domain import Guest, Link
from tests.lab.place import Place, Process, child_of, wait_until

_ROOT = "/var/lib/lab-guest"
_MEMORY_MIB = 64
# Each is lost once in a thousand on a busy machine.
_STARTS = 5


class LxcGuest(Guest):
    """A domain of the LXC driver; all of them share one read-only root directory."""

    driver: ClassVar[str] = "lxc"

    def __init__(self, host: Computer, name: str, *links: Link) -> None:
        super().__init__(host, name, *links)
        self.servers: list[Process] = []

    def _xml(self) -> ET.Element:
        domain, devices = self._element("lxc", _MEMORY_MIB)
        system = ET.SubElement(domain, "os")
        ET.SubElement(system, "type").text = "exe"
        ET.SubElement(system, "init").text = "/init"
        ET.SubElement(system, "initenv", name="GUEST_NAME").text = self.name
        ET.SubElement(system, "initenv", name="GUEST_LINKS").text = " ".join(link.word for link in self.links)
        root = ET.SubElement(devices, "filesystem", type="mount", accessmode="passthrough")
        ET.SubElement(root, "source", dir=_ROOT)
        ET.SubElement(root, "target", dir="/")
        ET.SubElement(root, "readonly")
        ET.SubElement(devices, "console", type="pty")
        return domain

    def define(self) -> Self:
        """Make it known to libvirt."""
        self.prepare()
        super().define()
        return self

    def prepare(self) -> None:
        """Build the root directory that all guests of a host share, unless it is there."""
        self.host.run("sh", "-c", 'test -x "$2/init" || sh "$1" "$2"', "sh", f"{SOURCE}/tests/lab/guest/build", _ROOT)

    def start(self) -> Self:
        """Start it, and wait until its page can be had."""
        super().start()
        self._start_again_unless_heard()
        self.wait_up()
        return self

    def _start_again_unless_heard(self) -> None:
        """Start it again where libvirt lost the connection to its controller, and would never notice its end.

        libvirt begins to read from the controller before it knows what to do with what it reads: on a busy machine, the
        word that the init runs may come in between, and then it hangs up for good (virLXCMonitorNew).
        """
        for _ in range(_STARTS):
            if self.heard():
                return
            self.stop()
            super().start()
        # A name that /proc shows in another form cannot be looked for, and a loss at each start would fail the test.

    def heard(self) -> bool:
        """Whether libvirtd is connected to the controller, from which it hears of the guest's reboot and end."""
        path, connected = f" /run/libvirt/lxc/{self.name}.sock", "03"
        sockets = Path(f"/proc/{self.host.init}/net/unix").read_text(encoding="utf-8", errors="surrogateescape")
        return any(line.endswith(path) and line.split()[5] == connected for line in sockets.splitlines())

    def wait_up(self) -> None:
        """Wait until its init has started the web servers, as it does last."""
        wait_until(self._serves, f"{self.name} is up")

    def _serves(self) -> bool:
        try:
            return self.place.fetch("http://127.0.0.1:8080/").answered
        except (OSError, LabError):
            return False

    def reboot(self) -> None:
        """Reboot it, as libvirt asks it to, and wait until the new init is up."""
        before = self.init_pid
        try:
            wait_until(self._asked_to_reboot, f"libvirt knows the init of {self.name}", timeout=3)
            wait_until(lambda: self._init_pid() != before, f"{self.name} goes down")
        except LabError:
            # libvirt may have missed the controller's word for good, or the init its signal.
            self.run("busybox", "reboot", "-f", check=False)
        wait_until(lambda: self._init_pid() not in (None, before), f"{self.name} reboots")
        self._start_again_unless_heard()
        self.wait_up()

    def _asked_to_reboot(self) -> bool:
        try:
            with self.domain() as domain:
                domain.reboot(libvirt.VIR_DOMAIN_REBOOT_SIGNAL)
        except libvirt.libvirtError as error:
            # The guest may be up before its controller has reported its init to libvirtd.
            if error.get_error_code() == libvirt.VIR_ERR_OPERATION_INVALID:
                return False
            raise
        return True

    def speak(self, to: str, *, as_address: str | None = None) -> None:
        """Ask by ARP who has an address, and say what the guest's own is, as any packet to its neighbours would."""
        own = ["-s", as_address] if as_address else []
        self.run("busybox", "arping", "-c", "1", "-w", "1", "-I", "eth0", *own, to, check=False)

    def crash(self) -> None:
        """Kill its PID 1, so that it ends without libvirt having asked."""
        self.host.run("kill", "-KILL", str(self.init_pid))
        wait_until(lambda: not self.running, f"{self.name} is gone")

    def crash_controller(self) -> None:
        """Kill libvirt's own process for it, and all in it."""
        with self.domain() as domain:
            self.host.run("kill", "-KILL", str(domain.ID()))
        wait_until(lambda: not self.running, f"{self.name} is gone")

    @property
    def init_pid(self) -> int:
        """Its PID 1, by the host's numbers."""
        pid = self._init_pid()
        if pid is None:
            raise LabError(f"{self.name} does not run")
        return pid

    def _init_pid(self) -> int | None:
        with self.domain() as domain:
            controller = domain.ID()
        return None if controller < 0 else child_of(controller, Path(f"/proc/{self.host.init}/root/proc"))

    @property
    def place(self) -> Place:
        """The guest's network, for programs of the host and for probes; another one after each start."""
        return self.host.guest_place(self.init_pid)

    def take_lease(self, *more: str) -> None:
        """Ask for an address by DHCP, and set it; `more` are words for udhcpc."""
        self.run(
            "busybox", "udhcpc", "-i", "eth0", "-s", f"{_ROOT}/dhcp", "-T", "1", "-t", "10", "-n", "-q", "-f", *more
        )

    def run(self, *argv: str, check: bool = True, timeout: float = 60) -> Completed:
        """Run a program of the host in the guest's network."""
        return self.place.run(argv, check=check, timeout=timeout)

    def serve_tcp(self, port: int) -> Process:
        """Answer with a line, then echo. Servers end with the guest, and start only when asked to again."""
        return self._served("tcp", port)

    def serve_ftp(self, port: int) -> Process:
        """Answer `PASV` with data connections that greet, then echo."""
        return self._served("ftp", port)

    def serve_udp(self, port: int) -> Process:
        """Answer each datagram."""
        return self._served("udp", port)

    def serve_sctp(self, port: int) -> Process:
        """Answer each INIT."""
        return self._served("sctp", port)

    def _served(self, protocol: str, port: int) -> Process:
        self.servers.append(self.place.serve(self.name, protocol, port))
        return self.servers[-1]
