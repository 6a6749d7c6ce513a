"""QEMU guests: a whole machine with a kernel of its own, in software emulation. For what containers cannot show."""

import xml.etree.ElementTree as ET
from typing import ClassVar, Self

from tests.lab import image
from tests.lab.domain import Guest
from tests.lab.host import SOURCE

_INITRAMFS = "/var/lib/lab-guest.cpio.gz"
_MEMORY_MIB = 128


class QemuGuest(Guest):
    """A domain of the QEMU driver; its name may hold no space. It takes its address by DHCP: see `lease`."""

    driver: ClassVar[str] = "qemu"

    def _xml(self) -> ET.Element:
        domain, devices = self._element("qemu", _MEMORY_MIB)
        system = ET.SubElement(domain, "os")
        ET.SubElement(system, "type", arch="x86_64", machine="q35").text = "hvm"
        ET.SubElement(system, "kernel").text = str(image.guest_kernel() / "vmlinuz")
        ET.SubElement(system, "initrd").text = _INITRAMFS
        ET.SubElement(system, "cmdline").text = f"console=ttyS0 quiet panic=1 guest={self.name}"
        ET.SubElement(ET.SubElement(domain, "features"), "acpi")
        for interface in devices.findall("interface"):
            ET.SubElement(interface, "model", type="virtio")
        console = ET.SubElement(devices, "serial", type="file")
        ET.SubElement(console, "source", path=self._console)
        ET.SubElement(devices, "memballoon", model="none")
        return domain

    @property
    def _console(self) -> str:
        return f"/var/log/libvirt/qemu/{self.name}.console"

    def define(self) -> Self:
        """Make it known to libvirt; the first guest of a host builds the initramfs."""
        build = ["sh", f"{SOURCE}/tests/lab/guest/build-initramfs", str(image.guest_kernel()), _INITRAMFS]
        if self.host.run("test", "-e", _INITRAMFS, check=False).returncode != 0:
            self.host.run(*build, *image.MODULES)
        super().define()
        return self

    def reset(self) -> None:
        """Press its reset button. libvirt tells listeners of a reboot; the guest has no ACPI daemon to ask politely."""
        with self.domain() as domain:
            domain.reset()

    def console(self) -> str:
        """What its kernel and init printed."""
        return self.host.run("cat", self._console, check=False).stdout
