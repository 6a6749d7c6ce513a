"""The service's life on a whole machine: it starts, is ended in every way and is there again, as is libvirtd.

A new configuration is taken up without harm, and refused without harm, at a reload and at a start. systemd finds
nothing wrong with the unit, and little exposure.
"""

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fwdaemon.audit.journal import MESSAGE_IDS
from tests.host.conftest import Conversation
from tests.lab.computer import CLIENT4, PUBLIC4
from tests.lab.machine import UNIT, Machine
from tests.lab.place import wait_until
from tests.lab.release import LibvirtFirewall
from tests.system.conftest import PAGE, page
from tests.system.sandbox import CONFIG, EVERYTHING, HEAD, WEB, WEB4, Sandbox

# One machine is enough: systemd does not care where libvirt's rules are. It is the newer one, whose systemd knows all
# words of the unit.
pytestmark = pytest.mark.on(LibvirtFirewall.NFTABLES)

NO_SOCKET = "no control socket, so neither status nor reload will work"
MORE = f'[[forward]]\ndomain = "web"\naddress = "{WEB4}"\nports = ["8082:80"]\n'
MORE_PAGE = f"http://{PUBLIC4}:8082/"
WRONG = HEAD + "resnyc = 1\n"
REFUSED = f"{CONFIG}:4: "
FREEZE = Path(__file__).with_name("freeze.py")
MOST_EXPOSED = 2.0
# What the daemon's threads may take is five times the watchdog's time; that has to be more than libvirt may take.
WATCHDOG_S, LIBVIRT_MAY_TAKE_S = 1.5, 5.0
MAY_TAKE_S = 5 * WATCHDOG_S


@pytest.fixture
def conversation(service: Sandbox) -> Iterator[Conversation]:
    """A connection through a forward, which has to be there at the end still."""
    client = Conversation(service.machine.outside, PUBLIC4, 7000)
    yield client
    assert client.goes_on()
    client.close()


def since(machine: Machine, *words: str) -> list[str]:
    """What the service's present run wrote of its actions."""
    run = machine.property("InvocationID")
    entries = machine.journal(f"_SYSTEMD_INVOCATION_ID={run}", *words)
    return [entry["PORTFWD_ACTION"] for entry in entries if "PORTFWD_ACTION" in entry]


def test_enabling_it_returns_when_the_forwards_are_in_force(service: Sandbox) -> None:
    machine = service.machine
    machine.systemctl("disable", "--now", UNIT)
    machine.run("kvm-portfwd", "flush")
    assert machine.systemctl("is-enabled", UNIT, check=False) == "disabled"
    assert not machine.outside.fetch(PAGE).answered
    machine.systemctl("enable", "--now", UNIT)
    assert page(machine) == f"web {CLIENT4}"
    assert machine.systemctl("is-enabled", UNIT) == "enabled"


def test_the_journal_has_every_change_with_its_fields(service: Sandbox) -> None:
    machine = service.machine
    machine.systemctl("stop", UNIT)
    machine.run("kvm-portfwd", "flush")
    machine.systemctl("start", UNIT)
    match = f"MESSAGE_ID={MESSAGE_IDS['added']}"
    run = f"_SYSTEMD_INVOCATION_ID={machine.property('InvocationID')}"
    added = {entry["PORTFWD_TARGET"]: entry for entry in machine.journal(run, match, "PORTFWD_DOMAIN=web")}
    line = added["192.168.122.10:80"]
    assert (line["PORTFWD_ACTION"], line["PORTFWD_LISTEN"]) == ("added", "tcp *:8080")
    assert line["PORTFWD_CAUSE"] in line["MESSAGE"]
    assert (line["_SYSTEMD_UNIT"], line["SYSLOG_IDENTIFIER"], line["PRIORITY"]) == (UNIT, "kvm-portfwd", "6")


def test_the_journal_explains_every_kind_of_line(service: Sandbox) -> None:
    machine = service.machine
    listed = machine.run("journalctl", "--list-catalog", *MESSAGE_IDS.values()).stdout
    assert all(f"{number} kvm-portfwd: " in listed for number in MESSAGE_IDS.values()), listed
    explained = machine.run("journalctl", "--catalog", "--no-pager", f"MESSAGE_ID={MESSAGE_IDS['added']}").stdout
    assert "░░ Subject: Something became reachable" in explained
    assert "@PORTFWD_" not in explained


def test_a_killed_daemon_comes_back_and_adopts_its_rules(service: Sandbox, conversation: Conversation) -> None:
    machine = service.machine
    before, rules = machine.property("MainPID"), machine.own_rules()
    with conversation.never_pausing():
        machine.run("kill", "-KILL", before)
        wait_until(lambda: machine.property("MainPID") not in ("0", before), "systemd starts it again")
        wait_until(lambda: machine.property("ActiveState") == "active", "it is ready")
    wait_until(lambda: since(machine) == ["moved", "adopted"], "the journal says what it found")
    assert machine.own_rules() == rules


def test_a_hung_daemon_is_ended_and_started_again(service: Sandbox, conversation: Conversation) -> None:
    machine = service.machine
    with service.drop_in("WatchdogSec=1s"), conversation.never_pausing():
        hung = machine.property("MainPID")
        machine.run("kill", "-STOP", hung)
        wait_until(lambda: machine.property("MainPID") not in ("0", hung), "systemd starts it again")
        service.says("Watchdog timeout")
        wait_until(lambda: machine.property("ActiveState") == "active", "it is ready")


def test_a_directory_that_was_removed_is_there_again_or_the_remedy_is_told(
    service: Sandbox, conversation: Conversation
) -> None:
    machine, directory = service.machine, "/run/kvm-portfwd"

    def status() -> int:
        return machine.run("kvm-portfwd", "status", check=False).returncode

    machine.run("rm", "-r", directory)
    service.says("the control socket was removed, and has been made again")
    wait_until(lambda: status() == 0, "the status")
    with service.drop_in("ReadOnlyPaths=/run"), conversation.never_pausing():
        machine.run("rm", "-r", directory)
        service.says(NO_SOCKET)
        wait_until(lambda: NO_SOCKET in machine.property("StatusText"), "systemd shows it")
        told = machine.run("kvm-portfwd", "status", check=False)
        assert f"the daemon runs, but {directory}/control.sock was removed" in told.stderr
        second = machine.run("kvm-portfwd", "run", check=False)
        assert "another kvm-portfwd is already running on this host" in second.stderr
        (remedy,) = [line for line in service.lines().splitlines() if line.startswith(NO_SOCKET)]
        machine.run("sh", "-c", remedy.rpartition(": ")[2])
        wait_until(lambda: status() == 0, "the remedy helps")


def test_stopping_it_keeps_the_rules_or_removes_them(service: Sandbox) -> None:
    machine = service.machine
    conversation = Conversation(machine.outside, PUBLIC4, 7000)
    rules = machine.own_rules()
    machine.systemctl("stop", UNIT)
    assert machine.own_rules() == rules
    assert page(machine) == f"web {CLIENT4}"
    assert conversation.goes_on()
    machine.systemctl("start", UNIT)
    wait_until(lambda: since(machine) == ["moved", "adopted"], "the journal says what it found")
    machine.write(CONFIG, HEAD.replace("[daemon]\n", '[daemon]\non_stop = "remove"\n') + WEB)
    machine.systemctl("reload", UNIT)
    wait_until(lambda: "loaded" in since(machine), "the configuration is in force")
    machine.systemctl("stop", UNIT)
    assert machine.own_rules() == ""
    wait_until(lambda: not conversation.goes_on(), "connections end with the rules")
    conversation.close()


def test_forwards_outlast_libvirtd_however_it_ends(service: Sandbox, conversation: Conversation) -> None:
    machine = service.machine
    with conversation.never_pausing():
        machine.libvirt.restart()
        machine.libvirt.stop()
        service.says("lost libvirt at lxc:///system")
        assert page(machine) == f"web {CLIENT4}"
        machine.libvirt.start()
        crashed = machine.property("MainPID", "libvirtd.service")
        machine.libvirt.kill()
        wait_until(
            lambda: machine.property("MainPID", "libvirtd.service") not in ("0", crashed),
            "libvirtd is back",
            timeout=30,
        )
        wait_until(lambda: "libvirt answers" in machine.property("StatusText"), "it is heard again")
        assert page(machine) == f"web {CLIENT4}"
    assert "removed" not in since(machine)


# --- a new configuration ----------------------------------------------------------------------------------------------


def by_systemctl(machine: Machine) -> None:
    machine.systemctl("reload", UNIT)


def by_signal(machine: Machine) -> None:
    machine.systemctl("kill", "--signal=HUP", "--kill-whom=main", UNIT)


def by_itself(machine: Machine) -> None:
    machine.run("kvm-portfwd", "reload")


@pytest.mark.in_turn
@pytest.mark.parametrize("reload", [by_systemctl, by_signal, by_itself])
def test_a_reload_takes_up_what_is_new_and_touches_nothing_else(
    service: Sandbox, reload: Callable[[Machine], None]
) -> None:
    machine = service.machine
    daemon = machine.property("MainPID")
    client = Conversation(machine.outside, PUBLIC4, 7000)
    with client.never_pausing():
        machine.write(CONFIG, HEAD + WEB + MORE)
        reload(machine)
        service.answers(lambda: machine.outside.fetch(MORE_PAGE), f"web {CLIENT4}")
    client.close()
    assert machine.property("MainPID") == daemon
    assert machine.property("ActiveState") == "active"


@pytest.mark.in_turn
def test_a_wrong_configuration_at_a_reload_leaves_the_old_one_in_force(service: Sandbox) -> None:
    machine = service.machine
    daemon, rules = machine.property("MainPID"), machine.own_rules()
    machine.write(CONFIG, WRONG)
    machine.systemctl("reload", UNIT)
    run = f"_SYSTEMD_INVOCATION_ID={machine.property('InvocationID')}"
    service.says(REFUSED, run, f"MESSAGE_ID={MESSAGE_IDS['refused']}")
    assert REFUSED in machine.run("kvm-portfwd", "reload", check=False).stderr
    assert REFUSED in machine.run("kvm-portfwd", "status").stdout
    assert machine.own_rules() == rules
    assert page(machine) == f"web {CLIENT4}"
    assert (machine.property("ActiveState"), machine.property("MainPID")) == ("active", daemon)


@pytest.mark.in_turn
def test_a_wrong_configuration_at_a_start_is_told_once_and_not_tried_again(service: Sandbox) -> None:
    machine = service.machine
    rules = machine.own_rules()
    # Where there is no last good one, as at a first start.
    machine.run("rm", "-f", "/var/lib/kvm-portfwd/last-good.json")
    machine.write(CONFIG, WRONG)
    assert machine.run("systemctl", "restart", UNIT, check=False).returncode != 0
    assert machine.property("ExecMainStatus") == "78"
    assert (machine.property("ActiveState"), machine.property("SubState")) == ("failed", "failed")
    assert machine.property("NRestarts") == "0"
    run = f"_SYSTEMD_INVOCATION_ID={machine.property('InvocationID')}"
    service.says(REFUSED, run)
    assert machine.own_rules() == rules, "what an earlier run left stays"
    machine.write(CONFIG, HEAD + WEB)
    machine.systemctl("start", UNIT)
    assert page(machine) == f"web {CLIENT4}"


# --- the unit --------------------------------------------------------------------------------------------------------


def test_systemd_finds_nothing_wrong_with_it(service: Sandbox) -> None:
    verified = service.machine.run("systemd-analyze", "verify", UNIT)
    assert (verified.stdout, verified.stderr) == ("", "")


def test_the_pauses_between_starts_grow_where_systemd_knows_how(service: Sandbox) -> None:
    assert service.machine.property("RestartSteps") == "6"
    assert service.machine.property("RestartMaxDelayUSec") == "1min"


def test_it_is_exposed_as_little_as_promised(service: Sandbox) -> None:
    told = service.machine.run("systemd-analyze", "security", "--no-pager", UNIT).stdout
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", told)
    assert found is not None, told
    assert float(found[1]) <= MOST_EXPOSED


def test_its_status_is_kept_current(service: Sandbox) -> None:
    machine = service.machine

    def shows(text: str) -> None:
        wait_until(lambda: machine.property("StatusText") == text, f"the status {text!r}")

    shows("6 forwards; nftables; libvirt answers")
    service.configure(EVERYTHING)
    shows("6 forwards, 2 1:1 addresses, 2 routes, 1 waiting; nftables; libvirt answers")
    service.configure(HEAD + WEB)
    machine.write(CONFIG, "nonsense")
    machine.systemctl("reload", UNIT)
    shows("6 forwards; nftables; libvirt answers; a newer configuration is refused")
    machine.write(CONFIG, HEAD + WEB)
    machine.systemctl("reload", UNIT)
    shows("6 forwards; nftables; libvirt answers")


def test_a_libvirt_that_hangs_is_waited_for(service: Sandbox) -> None:
    machine = service.machine
    with service.drop_in(f"WatchdogSec={WATCHDOG_S}s"):
        daemon, libvirtd = machine.property("MainPID"), machine.property("MainPID", "libvirtd.service")
        machine.run("kill", "-STOP", libvirtd)
        machine.run("ip", "address", "add", "198.51.100.77/32", "dev", "eth0")
        silent = "6 forwards; nftables; no answer from libvirt at lxc:///system"
        wait_until(lambda: machine.property("StatusText") == silent, "libvirt does not answer")
        time.sleep(MAY_TAKE_S + WATCHDOG_S - LIBVIRT_MAY_TAKE_S)  # longer than anything else may take
        machine.run("kill", "-CONT", libvirtd)
        machine.run("ip", "address", "del", "198.51.100.77/32", "dev", "eth0")
        wait_until(lambda: "libvirt answers" in machine.property("StatusText"), "libvirt answers")
        assert machine.property("MainPID") == daemon


def test_a_kernel_that_hangs_is_not(service: Sandbox) -> None:
    machine = service.machine
    with service.drop_in(f"WatchdogSec={WATCHDOG_S}s"):
        daemon, run = machine.property("MainPID"), machine.property("InvocationID")
        freezing = machine.popen("/usr/bin/python3", str(FREEZE), daemon)
        freezing.wait_line("^frozen$")
        machine.run("nft", "add table ip lab; delete table ip lab")
        wait_until(lambda: machine.property("MainPID") not in ("0", daemon), "it is started again")
        freezing.wait()
        of_this_run = f"_SYSTEMD_INVOCATION_ID={run}"
        service.says("a comparison with the kernel hangs: systemd will end the daemon", of_this_run)
        service.says("Current thread", of_this_run)  # where it hung
        service.answers(lambda: machine.outside.fetch(PAGE), f"web {CLIENT4}")


@pytest.mark.parametrize("end", ["runs", "was stopped", "was refused its configuration"])
def test_it_is_in_force_after_a_restart_of_nftables(service: Sandbox, end: str) -> None:
    machine = service.machine
    if end == "was stopped":
        machine.systemctl("stop", UNIT)
    elif end == "was refused its configuration":
        # Where there is no last good one, as at a first start.
        machine.run("rm", "-f", "/var/lib/kvm-portfwd/last-good.json")
        machine.write(CONFIG, "nonsense")
        machine.systemctl("restart", UNIT, check=False)
        assert machine.property("ActiveState") == "failed"
        machine.write(CONFIG, HEAD + WEB)
    machine.systemctl("restart", "nftables.service")
    service.answers(lambda: machine.outside.fetch(PAGE), f"web {CLIENT4}")
    wait_until(lambda: machine.property("ActiveState") == "active", "systemd takes it for started")


def test_who_ends_it_but_systemd_does_not_end_it_for_good(service: Sandbox) -> None:
    machine = service.machine
    before = machine.property("MainPID")
    machine.run("kill", "-TERM", before)
    wait_until(lambda: machine.property("MainPID") not in ("0", before), "it is started again")
    machine.systemctl("stop", UNIT)
    assert machine.property("ActiveState") == "inactive"
    machine.systemctl("start", UNIT)


def test_it_starts_after_those_it_follows_and_so_stops_before_them(service: Sandbox) -> None:
    followed = {"nftables.service", "firewalld.service", "ufw.service", "libvirtd.service", "virtnetworkd.service"}
    assert followed <= set(service.machine.property("After").split())
