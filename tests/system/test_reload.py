"""A new configuration: taken up without harm, and refused without harm, at a reload and at a start."""

from collections.abc import Callable

import pytest

from fwdaemon.audit.lines import MESSAGE_IDS
from tests.host.conftest import Conversation
from tests.lab.computer import CLIENT4, PUBLIC4
from tests.lab.machine import UNIT, Machine
from tests.lab.release import LibvirtFirewall
from tests.system.conftest import page
from tests.system.sandbox import CONFIG, HEAD, WEB, WEB4, Sandbox

# One machine of each release is enough: systemd does not care where libvirt's rules are.
pytestmark = pytest.mark.on(LibvirtFirewall.IPTABLES, LibvirtFirewall.NFTABLES)

MORE = f'[[forward]]\ndomain = "web"\naddress = "{WEB4}"\nports = ["8082:80"]\n'
MORE_PAGE = f"http://{PUBLIC4}:8082/"
WRONG = HEAD + "resnyc = 1\n"
REFUSED = f"{CONFIG}:4: "


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
    assert REFUSED in service.lines(run)
    assert machine.own_rules() == rules, "what an earlier run left stays"
    machine.write(CONFIG, HEAD + WEB)
    machine.systemctl("start", UNIT)
    assert page(machine) == f"web {CLIENT4}"
