"""A whole machine in an emulator, with Debian's own kernel: for what the kernel that the lab runs on may not have.

It boots in half a minute or more, so it is for little: a script runs on it, and what that prints comes back.
"""

import shutil
import tempfile
from pathlib import Path

from tests.lab import image
from tests.lab.command import LabError, run
from tests.lab.release import Release

_MEMORY_MIB = 2048
_PORT = "ttyS1"
_UNIT = f"""\
[Unit]
After=apparmor.service libvirtd.service
Wants=apparmor.service
SuccessAction=poweroff-force
FailureAction=poweroff-force
[Service]
Type=oneshot
ExecStart=/bin/sh /srv/script
StandardOutput=tty
StandardError=tty
TTYPath=/dev/{_PORT}
TimeoutStartSec=infinity
"""
_WORDS = (
    "console=ttyS0 quiet panic=1 apparmor=1 security=apparmor systemd.show_status=0 "
    "systemd.mask=serial-getty@ttyS0.service systemd.wants=script.service"
)


def emulate(release: Release, script: Path, *files: Path, timeout: float = 540) -> str:
    """Boot it, run a script once libvirtd has started, and give what it printed; the files are in /srv."""
    kernel, disk = image.emulated_kernel(), image.machine_disk(release)
    with tempfile.TemporaryDirectory(prefix="kvm-portfwd-emulated-") as directory:
        work = Path(directory)
        own = work / "root"
        (own / "etc/systemd/system").mkdir(parents=True)
        (own / "etc/systemd/system/script.service").write_text(_UNIT, encoding="utf-8")
        (own / "srv").mkdir()
        for file, name in ((script, "script"), *((file, file.name) for file in files)):
            shutil.copy(file, own / "srv" / name)
        image.make_disk(own, work / "disk")
        return _run(work, kernel, (disk, kernel / "system", work / "disk"), timeout)


def _run(work: Path, kernel: Path, disks: tuple[Path, ...], timeout: float) -> str:
    words = ["qemu-system-x86_64", "-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2"]
    words += ["-m", str(_MEMORY_MIB), "-display", "none", "-nic", "none", "-no-reboot", "-append", _WORDS]
    words += ["-kernel", str(kernel / "vmlinuz"), "-initrd", str(kernel / "initramfs")]
    for disk in disks:
        words += ["-drive", f"file={disk},format=raw,if=virtio,readonly=on"]
    for port in ("console", "told"):
        words += ["-serial", f"file:{work / port}"]
    run(words, timeout=timeout)
    told = (work / "told").read_text(encoding="utf-8", errors="replace").replace("\r", "")
    if not told:
        console = (work / "console").read_text(encoding="utf-8", errors="replace")
        raise LabError(f"the emulated machine did not run its script\n{console[-4000:]}")
    return told
