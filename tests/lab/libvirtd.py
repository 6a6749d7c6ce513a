"""The libvirtd of a lab host: its configuration and its life."""

import signal
import subprocess

from tests.lab.command import LabError
from tests.lab.libvirt_client import LibvirtClient
from tests.lab.place import Place, Process, wait_until
from tests.lab.release import LibvirtFirewall

_STOP_TIMEOUT = 5.0
# A lab host has no polkit to ask, no virtlogd to log through, and no AppArmor or SELinux of its own. It is apart enough
# for emulators to share its /dev. Post-copy needs userfaultfd(2), which the kernel gives to root only.
# What libvirt notes of a file's owner outlasts an emulator that is killed, and can keep the next one from the file.
_FILES = {
    "libvirtd.conf": 'auth_unix_rw = "none"\nauth_unix_ro = "none"\n',
    "qemu.conf": (
        'security_driver = "none"\nstdio_handler = "file"\nnamespaces = []\n'
        'user = "+0"\nclear_emulator_capabilities = 0\nremember_owner = 0\n'
    ),
    "lxc.conf": 'security_driver = "none"\n',
}
# libvirt reads its own place in the control groups, and cannot use one outside the host's roots.
_START = """
groups=/sys/fs/cgroup/init
[ -d $groups ] || groups='/sys/fs/cgroup/*'
for group in $groups; do
    echo 0 >$group/cgroup.procs
done
exec libvirtd
"""
_PREPARE = """
set -e
rm -rf /etc/libvirt/qemu /etc/libvirt/lxc /var/lib/libvirt/dnsmasq/*
mkdir -p /etc/libvirt/qemu/networks /var/log/libvirt
# libvirt asks each emulator what it can do, half a second a piece.
for emulator in /usr/bin/qemu-system-*; do
    [ "${emulator##*-}" = x86_64 ] || rm -f "$emulator"
done
for name in iptables ip6tables; do
    update-alternatives --quiet --set $name /usr/sbin/$name-$1
done
"""


class Libvirt(LibvirtClient):
    """libvirtd of one host. Its processes live and die with the host."""

    def __init__(self, place: Place, init: int, firewall: LibvirtFirewall) -> None:
        super().__init__(place, init)
        self._firewall = firewall
        self._process: Process | None = None

    def prepare(self) -> None:
        """Give the host a libvirt without networks or domains, on the firewall of its flavour."""
        legacy = self._firewall is LibvirtFirewall.LEGACY
        self._place.run(["sh", "-c", _PREPARE, "sh", "legacy" if legacy else "nft"])
        for name, text in _FILES.items():
            self._write(f"/etc/libvirt/{name}", text)
        self.choose_firewall(self._firewall)

    @property
    def process(self) -> Process:
        """The running libvirtd."""
        if self._process is None:
            raise LabError("libvirtd was not started")
        return self._process

    @property
    def running(self) -> bool:
        """Whether libvirtd was started and has not ended."""
        return self._process is not None and self._process.running

    def start(self) -> None:
        """Start libvirtd and wait until it answers."""
        self._process = self._place.popen(["sh", "-c", _START])
        wait_until(self._answers, "libvirtd answers", interval=0.02)

    def stop(self) -> None:
        """SIGTERM, and SIGKILL if it hangs then, as systemd would. Guests and networks stay.

        libvirtd 11.3 now and then hangs at its end, its socket already gone.
        """
        try:
            self.process.stop(timeout=_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """SIGKILL: a crash. Guests and networks stay."""
        self.process.stop(signal.SIGKILL)

    def restart(self) -> None:
        """Stop, then start."""
        self.stop()
        self.start()

    def _answers(self) -> bool:
        if not self.process.running:
            raise LabError(f"libvirtd ended:\n{self.process.text()}")
        return self.answers
