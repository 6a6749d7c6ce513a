"""The helpers that change the legacy tables: what refuses, dies, or is missing."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fwdaemon.core.types import Family
from fwdaemon.errors import KernelError
from fwdaemon.legacy.backend import LegacyBackend
from fwdaemon.legacy.client import HelperClient, UnusableError
from fwdaemon.legacy.model import FWD, OUT, PRE, Change, Edit, Rule, TableName, labelling
from fwdaemon.legacy.ruleset import links
from tests.kernel.legacy import commit, helpers, iptables, own, saved
from tests.kernel.test_nftables import ALL
from tests.lab.command import run

IPV4 = frozenset(item for item in ALL.forwards if item.family is Family.IPV4)

_IMPORTING = """
import sys
sys.addaudithook(lambda event, of: print(of[0]) if event == "subprocess.Popen" else None)
import iptc
"""


def test_a_helper_that_dies_is_an_error_once(backend: LegacyBackend) -> None:
    backend.apply(ALL, full=False)
    client = HelperClient(Family.IPV4)
    with client.locked() as session:
        session.observe({TableName.NAT: links(TableName.NAT)}, ())
    assert client.pid
    os.kill(client.pid, signal.SIGKILL)
    with pytest.raises(KernelError, match="ended unexpectedly"), client.locked() as session:
        session.observe({TableName.NAT: links(TableName.NAT)}, ())
    with client.locked() as session:
        assert PRE in session.observe({TableName.NAT: links(TableName.NAT)}, ())[TableName.NAT].chains
    client.close()


def test_the_backend_goes_on_after_its_helpers_died(backend: LegacyBackend) -> None:
    backend.apply(ALL, full=False)
    for pid in helpers():
        os.kill(pid, signal.SIGKILL)
    iptables("-F")
    assert backend.apply(ALL, full=True).damaged == IPV4


def test_signals_meant_for_the_daemon_do_not_end_a_helper(backend: LegacyBackend) -> None:
    backend.apply(ALL, full=False)
    pids = helpers()
    assert len(pids) == 2
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGINT)
    iptables("-F")
    assert backend.apply(ALL, full=False).changed
    assert helpers() == pids


def test_what_the_kernel_refuses_is_named_and_changes_nothing(lock_file: Path) -> None:
    del lock_file
    client = HelperClient(Family.IPV4)
    good = Rule.of("-p tcp", "ACCEPT", "good")
    bad = Rule.of("", "REJECT --reject-with tcp-reset", "bad")  # for TCP only, which is not said here
    change = Change(create=(FWD,), edits=(Edit(FWD, (), ((0, good), (1, bad))),))
    with pytest.raises(KernelError, match=r"legacy table filter .* REJECT"):
        commit(client, change)
    assert own() == ""
    client.close()


def test_what_the_library_refuses_is_named_and_changes_nothing(lock_file: Path) -> None:
    del lock_file
    client = HelperClient(Family.IPV6)
    bad = Rule.of("-p tcp -m tcp --dport nonsense", "ACCEPT", "bad")
    with pytest.raises(KernelError, match=r"refused a rule.*nonsense"):
        commit(client, Change(create=(FWD,), edits=(Edit(FWD, (), ((0, bad),)),)))
    assert own() == ""
    with client.locked() as session:
        assert session.observe({TableName.FILTER: {}}, ())
    client.close()


@pytest.mark.parametrize("family", Family)
def test_rules_of_many_forwards_are_as_they_are_written(lock_file: Path, family: Family) -> None:
    del lock_file
    to = "192.0.2.{}:{}" if family is Family.IPV4 else "[2001:db8::{}]:{}"
    rules = [
        Rule.of(
            f"-p {name} -m {name} --dport {port} {labelling(bit)}", f"DNAT --to-destination {to.format(port, 1)}", name
        )
        for port in range(1, 10)
        for name in ("tcp", "udp")
        for bit in (1, 2)
    ]
    client = HelperClient(family)
    with client.locked() as session:
        session.observe({TableName.NAT: {}}, ())
        session.commit(TableName.NAT, Change(create=(OUT,), edits=(Edit(OUT, (), tuple(enumerate(rules))),)))
    client.close()
    listed = [line for line in saved().splitlines() if line.startswith(f"-A {OUT} ")]
    assert listed == [f"-A {OUT} {rule}" for rule in rules]


def test_what_is_missing_is_said_plainly(lock_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    del lock_file
    monkeypatch.setenv("XTABLES_LIBDIR", str(tmp_path))
    with pytest.raises((KernelError, UnusableError), match="addrtype"), HelperClient(Family.IPV4).locked():
        pass


def test_iptables_waits_for_us_and_we_for_iptables(lock_file: Path) -> None:
    client = HelperClient(Family.IPV4)
    with client.locked() as session:
        session.observe({TableName.FILTER: links(TableName.FILTER)}, ())
        waiting = subprocess.Popen(["iptables-legacy", "-w", "-A", "FORWARD", "-j", "ACCEPT"])  # noqa: S607
        time.sleep(0.2)
        assert waiting.poll() is None
    assert waiting.wait(5) == 0
    holder = subprocess.Popen(["flock", str(lock_file), "sleep", "0.5"])  # noqa: S603, S607
    time.sleep(0.2)
    before = time.monotonic()
    with client.locked() as session:
        assert (
            session.observe({TableName.FILTER: links(TableName.FILTER)}, ())[TableName.FILTER].heads["FORWARD"].foreign
        )
    assert time.monotonic() - before > 0.1
    holder.wait()
    client.close()


def test_the_daemon_never_loads_the_library() -> None:
    loaded = "import fwdaemon.daemon, fwdaemon.legacy.backend, fwdaemon.legacy.gates, sys"
    program = f"{loaded}; sys.exit('iptc' in sys.modules)"
    assert run([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(Path.cwd())}).returncode == 0


def test_the_library_finds_its_own_part_without_a_compiler(backend: LegacyBackend, tmp_path: Path) -> None:
    """Left alone it runs gcc, which is not of a kind that a service should run as root."""
    backend.apply(ALL, full=False)
    told = Path(f"/proc/{helpers()[0]}/environ").read_text().rstrip("\0").split("\0")
    environment = dict(setting.split("=", 1) for setting in told)
    (tmp_path / "gcc").write_text("#!/bin/sh\n")
    (tmp_path / "gcc").chmod(0o755)
    ran = subprocess.run(  # noqa: S603  it is this interpreter
        [sys.executable, "-c", _IMPORTING],
        env={**environment, "PATH": f"{tmp_path}:{environment['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert {Path(program).name for program in ran.stdout.split()} <= {"ldconfig"}
