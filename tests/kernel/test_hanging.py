"""Programs that hang, and iptables' lock in other hands: nothing waits for them for long, and none is left behind."""

import fcntl
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fwdaemon.config.model import BackendChoice
from fwdaemon.core.report import LIBVIRT_CHAIN
from fwdaemon.core.types import Family
from fwdaemon.errors import HangingError, KernelError
from fwdaemon.kernel import process
from fwdaemon.kernel.process import SystemRunner
from fwdaemon.legacy.backend import LegacyBackend
from fwdaemon.legacy.client import HelperClient, LateError
from fwdaemon.legacy.model import TableName
from fwdaemon.legacy.ruleset import links
from fwdaemon.netfilter import Netfilter
from fwdaemon.nftables.backend import NftablesBackend
from tests import sentences
from tests.kernel.legacy import helpers, iptables, own
from tests.kernel.test_nftables import ALL
from tests.lab.command import run
from tests.lab.rules import own_rules

NAT = {TableName.NAT: links(TableName.NAT)}


@contextmanager
def held(lock_file: Path) -> Iterator[None]:
    """Hold iptables' lock."""
    with lock_file.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take a shorter time for hanging. It is one for all programs, as the end of the daemon hurries all of them."""
    monkeypatch.setattr(process.HASTE, "idle", 0.5)


def program(path: Path, text: str) -> Path:
    """Write a program."""
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="ascii")
    path.chmod(0o755)
    return path


@pytest.fixture
def ahead(tmp_path: Path, namespace: None) -> SystemRunner:
    """Give a runner that finds what is in the test's directory ahead of the system's own programs."""
    del namespace
    return SystemRunner(f"{tmp_path}:{process.PATH}")


@pytest.mark.usefixtures("impatient")
def test_a_program_that_does_nothing_is_ended_with_all_that_it_started(tmp_path: Path, ahead: SystemRunner) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    program(tmp_path / "nft", f"sleep 1000 >{fifo} & wait")
    reading = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(HangingError, match="it did nothing for"):
        ahead.run("nft", "list", "tables")
    os.set_blocking(reading, True)
    assert os.read(reading, 1) == b""  # no process has it open for writing any more
    os.close(reading)


@pytest.mark.usefixtures("impatient")
def test_a_program_that_works_is_waited_for(tmp_path: Path, ahead: SystemRunner) -> None:
    program(tmp_path / "nft", "cat; i=0; while [ $i -lt 1000000 ]; do i=$((i + 1)); done; echo done")
    text = "x" * 1_000_000
    assert ahead.run("nft", "-f", "-", stdin=text).stdout == f"{text}done\n"


# `posix_spawn` waits in the kernel until its child executes a program, which opens its input first.
_UNINTERRUPTED = """
import os
os.posix_spawn("/bin/true", ["true"], {}, file_actions=[(os.POSIX_SPAWN_OPEN, 0, os.environ["FIFO"], os.O_RDONLY, 0)])
print("done")
"""


@pytest.mark.usefixtures("impatient")
def test_a_program_that_the_kernel_keeps_waiting_is_waited_for(tmp_path: Path, ahead: SystemRunner) -> None:
    """To kill it would not end the wait: `nft` waits so for what others commit, and for what the kernel still frees."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "script").write_text(_UNINTERRUPTED, encoding="ascii")
    later = f"(sleep 2; : >{tmp_path}/fifo) >/dev/null 2>&1 &"
    program(tmp_path / "nft", f"{later} FIFO={tmp_path}/fifo exec {sys.executable} {tmp_path}/script")
    assert ahead.run("nft", "list", "tables").stdout == "done\n"


@pytest.mark.usefixtures("impatient")
def test_a_helper_that_stops_while_it_holds_the_lock_is_ended(backend: LegacyBackend, lock_file: Path) -> None:
    backend.apply(ALL, full=False)
    client = HelperClient(Family.IPV4)
    with client.locked() as session:
        session.observe(NAT, ())
        assert client.pid
        os.kill(client.pid, signal.SIGSTOP)
        with pytest.raises(LateError, match="it did nothing for"):
            session.observe(NAT, ())
    with lock_file.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert len(helpers()) == 2


def test_a_held_lock_is_told_and_waited_for_once(backend: LegacyBackend, lock_file: Path) -> None:
    backend.apply(ALL, full=False)
    iptables("-t", "nat", "-F")
    with held(lock_file), pytest.raises(KernelError, match=f"another program has held {lock_file} for more than"):
        backend.apply(ALL, full=False)
    assert backend.apply(ALL, full=False).changed


def test_a_held_lock_does_not_keep_nftables_from_healing(lock_file: Path, runner: SystemRunner) -> None:
    iptables("-P", "FORWARD", "DROP")
    netfilter = Netfilter(runner, BackendChoice.NFTABLES)
    netfilter.apply(ALL, full=True)
    ours = own_rules(run(["nft", "list", "ruleset"]).stdout, "")
    iptables("-F", "FORWARD")
    run(["nft", "flush", "ruleset"])
    with held(lock_file):
        result = netfilter.apply(ALL, full=True)
        assert own_rules(run(["nft", "list", "ruleset"]).stdout, "") == ours
    assert any("another program has held" in fault for fault in sentences.faults(result))
    netfilter.apply(ALL, full=False)
    assert "kvm-portfwd" in run(["iptables-legacy", "-S", "FORWARD"]).stdout
    netfilter.remove()


def test_a_held_lock_does_not_keep_gates_in_nftables_from_healing(lock_file: Path, runner: SystemRunner) -> None:
    run(["iptables-nft", "-P", "FORWARD", "DROP"])
    netfilter = Netfilter(runner, BackendChoice.IPTABLES)
    netfilter.apply(ALL, full=True)
    run(["iptables-nft", "-F", "FORWARD"])
    iptables("-t", "nat", "-F")
    with held(lock_file), pytest.raises(KernelError, match="another program has held"):
        netfilter.apply(ALL, full=True)
    assert "kvm-portfwd" in run(["iptables-nft", "-S", "FORWARD"]).stdout
    netfilter.remove()
    assert own() == ""


@pytest.mark.usefixtures("impatient", "namespace")
@pytest.mark.parametrize(
    "wipe",
    [
        "delete table ip kvm_portfwd",
        "flush table ip kvm_portfwd",
        "flush chain ip kvm_portfwd forwards",
        "flush chain ip kvm_portfwd prerouting",
    ],
)
def test_a_program_that_hangs_on_rules_of_others_does_not_keep_a_wiped_table_from_healing(
    tmp_path: Path, ahead: SystemRunner, wipe: str
) -> None:
    run(["iptables-nft", "-P", "FORWARD", "DROP"])
    backend = NftablesBackend(ahead)
    backend.apply(ALL, full=True)
    ours = run(["nft", "list", "table", "ip", "kvm_portfwd"]).stdout
    run(["nft", *wipe.split()])
    hanging = program(tmp_path / "iptables-nft", "exec sleep 1000")
    with pytest.raises(HangingError):
        backend.apply(ALL, full=False)
    hanging.unlink()
    assert run(["nft", "list", "table", "ip", "kvm_portfwd"]).stdout == ours
    result = backend.apply(ALL, full=False)
    assert result.damaged == {exposure for exposure in ALL.exposures if exposure.family is Family.IPV4}


@pytest.mark.usefixtures("impatient", "namespace", "lock_file")
@pytest.mark.parametrize("wipe", ["delete table ip kvm_portfwd", "flush table ip kvm_portfwd"])
def test_an_iptables_that_hangs_does_not_keep_nftables_from_healing(
    tmp_path: Path, ahead: SystemRunner, wipe: str
) -> None:
    """It is asked where it writes to, as libvirt has chains in both rule systems."""
    for variant in ("iptables-legacy", "iptables-nft"):
        run([variant, "-N", LIBVIRT_CHAIN])
        run([variant, "-A", LIBVIRT_CHAIN, "-j", "RETURN"])
    program(tmp_path / "iptables", "echo 'iptables v1.8.9 (nf_tables)'")
    netfilter = Netfilter(ahead)
    netfilter.apply(ALL, full=True)
    ours = run(["nft", "list", "table", "ip", "kvm_portfwd"]).stdout
    run(["nft", *wipe.split()])
    hanging = program(tmp_path / "iptables", f"nft list table ip kvm_portfwd >{tmp_path}/asked; exec sleep 1000")
    result = netfilter.apply(ALL, full=False)
    assert (tmp_path / "asked").read_text(encoding="ascii") == ours
    assert result.damaged
    assert any("iptables does not say where it writes to" in fault for fault in sentences.faults(result))
    hanging.unlink()
    assert not netfilter.apply(ALL, full=True).faults
    netfilter.remove()
    netfilter.close()


def test_a_program_that_reads_late_gets_all_of_its_input(tmp_path: Path) -> None:
    """As `ipset restore` with a large set does on a busy machine."""
    program = tmp_path / "late"
    program.write_text("#!/bin/sh\nsleep 1\nexec wc -c\n")
    program.chmod(0o755)
    assert int(SystemRunner(str(tmp_path)).run("late", stdin="x" * 1_000_000).stdout) == 1_000_000
