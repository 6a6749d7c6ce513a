"""The machines themselves: what the other tests here stand on."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.lab.computer import PUBLIC4, SOURCE
from tests.lab.machine import Machine
from tests.lab.place import wait_until
from tests.lab.probe import Outcome
from tests.lab.release import LibvirtFirewall

# One machine of each release is enough.
pytestmark = pytest.mark.on(LibvirtFirewall.IPTABLES, LibvirtFirewall.NFTABLES)

_OWNER = """
    import signal, time
    from tests.lab.domain import Link
    from tests.lab.lxc import LxcGuest
    from tests.lab.machine import Machine
    from tests.lab.release import DEBIAN13_NFTABLES
    machine = Machine.boot(DEBIAN13_NFTABLES)
    machine.libvirt.define_network("lab", "192.168.122.0/24", dhcp=True)
    LxcGuest(machine, "web", Link("lab", ("192.168.122.10/24",))).start().pause()
    machine.popen("sleep", "1000").send(signal.SIGSTOP)
    print(machine.init, machine.keeper_pid, flush=True)
    time.sleep(1000)
"""


def test_a_reboot_ends_everything_but_the_files(machine: Machine) -> None:
    machine.write("/etc/kept", "kept")
    machine.write("/run/gone", "gone")
    machine.run("nft", "add", "table", "inet", "gone")
    sleeping = machine.popen("sleep", "1000")
    init = machine.init
    machine.reboot()
    sleeping.wait()
    assert machine.init != init
    assert machine.journal("--boot=-1")
    assert machine.read("/etc/kept") == "kept"
    assert machine.run("test", "-e", "/run/gone", check=False).returncode == 1
    assert "inet gone" not in machine.run("nft", "list", "tables").stdout
    assert machine.outside.tcp(PUBLIC4, 1).outcome is Outcome.REFUSED, "its links are there"


def test_a_machine_cannot_change_the_kernel_around_it(machine: Machine) -> None:
    before = Path("/proc/sys/kernel/printk").read_text(encoding="ascii")
    changed = machine.run("sysctl", "-w", "kernel.printk=1 1 1 1", check=False)
    assert changed.returncode != 0
    assert Path("/proc/sys/kernel/printk").read_text(encoding="ascii") == before


@pytest.mark.usefixtures("lab")
def test_nothing_is_left_when_the_owner_is_killed() -> None:
    owner = subprocess.Popen(  # noqa: S603  this interpreter
        [sys.executable, "-c", textwrap.dedent(_OWNER)], cwd=SOURCE, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    init, keeper = (int(word) for word in owner.stdout.readline().split())
    assert _groups(keeper)
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    wait_until(lambda: not Path(f"/proc/{keeper}").exists(), "the keeper ends")
    assert not Path(f"/proc/{init}").exists()
    assert not _groups(keeper)


def _groups(keeper: int) -> list[Path]:
    return list(Path("/sys/fs/cgroup").rglob(f"kvm-portfwd-lab-{keeper}"))
