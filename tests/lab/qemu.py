"""QEMU guests: a whole machine with a kernel of its own, in software emulation. For what containers cannot show."""

import json
import xml.etree.ElementTree as ET
from base64 import b64decode
from typing import Any, ClassVar, Self

import libvirt
import libvirt_qemu

from tests.lab import image
from tests.lab.command import LabError
from tests.lab.computer import SOURCE, Computer
from tests.lab.domain import Guest, Link
from tests.lab.place import wait_until

_INITRAMFS = "/var/lib/lab-guest.cpio"
_MEMORY_MIB = 128
_AGENT_CHANNEL = "org.qemu.guest_agent.0"
_AGENT_PATIENCE_S = 10
_UNLIMITED_MIB_S = 1024
ECHO_PORT = 7


class QemuGuest(Guest):
    """A domain of the QEMU driver; its name may hold no space. Its guest agent runs, and runs programs in it."""

    driver: ClassVar[str] = "qemu"
    undefine_flags: ClassVar[int] = libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE

    def _xml(self) -> ET.Element:
        domain, devices = self._element("qemu", _MEMORY_MIB)
        system = ET.SubElement(domain, "os")
        ET.SubElement(system, "type", arch="x86_64", machine="q35").text = "hvm"
        ET.SubElement(system, "kernel").text = str(image.guest_kernel() / "vmlinuz")
        ET.SubElement(system, "initrd").text = _INITRAMFS
        links = ";".join(link.word for link in self.links)
        ET.SubElement(system, "cmdline").text = f"console=ttyS0 quiet panic=1 guest={self.name} links={links}"
        ET.SubElement(ET.SubElement(domain, "features"), "acpi")
        # Each port takes one device, and some are to be left for what is plugged in later.
        for model in ("pcie-root", *["pcie-root-port"] * 8):
            ET.SubElement(devices, "controller", type="pci", model=model)
        channel = ET.SubElement(devices, "channel", type="unix")
        ET.SubElement(channel, "target", type="virtio", name=_AGENT_CHANNEL)
        console = ET.SubElement(devices, "serial", type="file")
        ET.SubElement(console, "source", path=self._console)
        ET.SubElement(devices, "memballoon", model="none")
        return domain

    def _interface(self, link: Link, mac: str) -> ET.Element:
        interface = super()._interface(link, mac)
        ET.SubElement(interface, "model", type="virtio")
        return interface

    @property
    def _console(self) -> str:
        return f"/var/log/libvirt/qemu/{self.name}.console"

    def define(self) -> Self:
        """Make it known to libvirt."""
        self.prepare()
        super().define()
        return self

    def prepare(self) -> None:
        """Build what all guests of a host share; a guest that migrates there needs it too."""
        if self.host.run("test", "-e", _INITRAMFS, check=False).returncode != 0:
            build, kernel, agent = SOURCE / "tests/lab/guest/build-initramfs", image.guest_kernel(), image.guest_agent()
            self.host.run("sh", str(build), str(kernel), str(agent), _INITRAMFS, *image.MODULES)

    def start_paused(self) -> None:
        """Start it without letting it run: for what libvirt has to say of it, a boot is not needed."""
        with self.domain() as domain:
            domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)

    def rename(self, name: str) -> None:
        """Give it another name while it does not run; its interfaces keep their MAC addresses."""
        with self.domain() as domain:
            domain.rename(name)
        self.name = name

    def save(self) -> None:
        """Save its memory and stop it; the next start goes on from there (libvirt's managed save)."""
        with self.domain() as domain:
            domain.managedSave()

    def save_to(self, path: str) -> None:
        """Save its memory to a file of the host, stop it and forget it.

        `restore_from` goes on from there, as often as it is asked to, in a tenth of the time of a boot.
        """
        with self.domain() as domain:
            domain.save(path)
        self.remove()

    def restore_from(self, path: str) -> None:
        """Go on from such a file, as the domain that it was, which libvirt does not know now."""
        with self.host.libvirt.connection(self.driver) as connection:
            connection.restore(path)
            # It was restored as one that goes when it stops.
            connection.defineXML(connection.lookupByName(self.name).XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))

    def crash(self) -> None:
        """Kill its emulator."""
        self.host.run("kill", "-KILL", self.host.read(f"/run/libvirt/qemu/{self.name}.pid").strip())
        wait_until(lambda: not self.running, f"{self.name} is gone")

    def migrate(self, to: Computer, address: str, *, bandwidth: int = 0, flags: int = 0) -> None:
        """Move it, as it runs, to another host, which has this address for the one it is on.

        `bandwidth`, in MiB/s, stretches the copy, of some 60 MiB, and what post-copy leaves of it, until `hurry_copy`;
        0 is libvirt's own. `flags` are libvirt's, too.
        """
        QemuGuest(to, self.name).prepare()
        flags |= libvirt.VIR_MIGRATE_LIVE | libvirt.VIR_MIGRATE_PERSIST_DEST | libvirt.VIR_MIGRATE_UNDEFINE_SOURCE
        with self.domain() as domain, to.libvirt.connection(self.driver) as destination:
            # libvirt.py says that the parameters are a string; they are a dictionary.
            parameters: Any = {
                libvirt.VIR_MIGRATE_PARAM_URI: f"tcp://{address}",
                libvirt.VIR_MIGRATE_PARAM_BANDWIDTH: bandwidth,
            }
            if flags & libvirt.VIR_MIGRATE_POSTCOPY:
                parameters[libvirt.VIR_MIGRATE_PARAM_BANDWIDTH_POSTCOPY] = bandwidth
            domain.migrate3(destination, parameters, flags)

    def start_post_copy(self) -> None:
        """Have it run on the other host at once, which fetches what memory is missing: `virsh migrate-postcopy`."""
        with self.domain() as domain:
            domain.migrateStartPostCopy()

    def hurry_copy(self) -> None:
        """Lift the limit on a migration that is under way, before and after post-copy: `virsh migrate-setspeed`."""
        with self.domain() as domain:
            for flags in (0, libvirt.VIR_DOMAIN_MIGRATE_MAX_SPEED_POSTCOPY):
                domain.migrateSetMaxSpeed(_UNLIMITED_MIB_S, flags)

    def abort_job(self) -> None:
        """Cancel what libvirt is doing with it, as a migration: `virsh domjobabort`."""
        with self.domain() as domain:
            domain.abortJob()

    def is_being_copied(self) -> bool:
        """Whether its memory is on the way to another host."""
        with self.domain() as domain:
            statistics: Any = domain.jobStats()
            return bool(statistics.get("memory_processed", 0))

    def state(self) -> tuple[int, int]:
        """What libvirt says of its state, and the reason for it."""
        with self.domain() as domain:
            # libvirt.py says that they are strings; they are numbers.
            told: Any = domain.state()
            return told[0], told[1]

    def reset(self) -> None:
        """Press its reset button. libvirt reports a reboot; the guest has no ACPI daemon to ask politely."""
        with self.domain() as domain:
            domain.reset()

    def console(self) -> str:
        """What its kernel and init printed."""
        return self.host.run("cat", self._console, check=False).stdout

    def wait_up(self) -> None:
        """Wait until its guest agent answers, which starts before the interfaces are set up."""
        errors: list[str] = []

        def answers() -> bool:
            try:
                self._ask_agent("guest-ping")
            except libvirt.libvirtError as error:
                errors[:] = [str(error)]
                return False
            return True

        wait_until(answers, lambda: f"the agent of {self.name} answers: {errors}\n{self.console()}", interval=0.1)

    def run(self, *argv: str) -> str:
        """Run a program in the guest to its end, by its agent; what it printed."""
        started = self._ask_agent("guest-exec", path=argv[0], arg=list(argv[1:]), **{"capture-output": True})
        pid = started["pid"]
        ended: dict[str, Any] = {}

        def has_ended() -> bool:
            ended.update(self._ask_agent("guest-exec-status", pid=pid))
            return bool(ended["exited"])

        wait_until(has_ended, f"{argv} ends in {self.name}", interval=0.05)
        printed = b64decode(ended.get("out-data", "")).decode(errors="replace")
        if ended.get("exitcode") != 0:
            raise LabError(f"{argv} failed in {self.name}: {ended} {printed}")
        return printed

    def renumber(self, address: str, gateway: str) -> None:
        """Give its first interface another address with prefix, and start its agent anew, as an update of it would."""
        script = f"""
            ip address flush dev eth0 scope global
            ip address add {address} dev eth0
            ip route add default via {gateway}
            (sleep 1; killall qemu-ga) >/dev/null 2>&1 </dev/null &
        """
        self.run("sh", "-c", script)

    def _ask_agent(self, command: str, **arguments: object) -> Any:
        question = json.dumps({"execute": command, "arguments": arguments})
        with self.domain() as domain:
            return json.loads(libvirt_qemu.qemuAgentCommand(domain, question, _AGENT_PATIENCE_S, 0))["return"]
