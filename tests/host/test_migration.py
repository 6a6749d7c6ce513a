"""The steps of docs/migration.md, read from the page: at no moment is a forward down, on the way there and back."""

import re
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext

import pytest

from tests.conftest import StartDaemon
from tests.host.conftest import HEAD, WEB4, Scene, entry
from tests.host.old_tools import hook_rules, hook_script
from tests.lab.daemon import Daemon
from tests.lab.host import CLIENT4, PUBLIC4, SOURCE, Host
from tests.lab.place import wait_until
from tests.lab.probe import Answer
from tests.lab.release import LibvirtFirewall

STEPS = re.findall(r"^```sh\n(.*?)^```$", (SOURCE / "docs/migration.md").read_text(), re.DOTALL | re.MULTILINE)
HOOKS = "/etc/libvirt/hooks"
HOOKS_JSON = f"""{{
    "web": {{
        "private_ip": "{WEB4}",
        "port_map": {{ "tcp": [[8000, 80], 9000], "udp": [7000] }},
    }},
}}"""
RULES = hook_rules(
    "web", PUBLIC4, WEB4, [("tcp", "8000", "80", ""), ("tcp", "9000", "9000", ""), ("udp", "7000", "7000", "")]
)
PAGE = f"http://{PUBLIC4}:8000/"


@contextmanager
def always_answered(host: Host) -> Iterator[None]:
    """Open new connections without pause; each of them must be answered."""
    over = threading.Event()
    answers: list[Answer] = []

    def ask() -> None:
        while not over.wait(0.005):
            answers.append(host.outside.fetch(PAGE))
            answers.append(host.outside.udp(PUBLIC4, 7000))

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    try:
        yield
    finally:
        over.set()
        asking.join(10)
    assert len(answers) > len(STEPS)
    assert {answer.text for answer in answers} == {f"web {CLIENT4}"}


class Administrator:
    """Does what the page says; its `systemctl` is the lab's way to start and stop the daemon."""

    def __init__(self, host: Host, start: StartDaemon) -> None:
        self.host = host
        self._start = start
        self._daemon: Daemon | None = None

    def follow(self, step: str) -> None:
        """Run one block of the page."""
        for part in re.split(r"^systemctl (.*) kvm-portfwd\n", step, flags=re.MULTILINE):
            match part:
                case "enable --now" | "start":
                    self._daemon = self._start(HEAD)
                    self._daemon.wait_log("^(added web|adopted 3)")
                case "disable --now" | "stop":
                    assert self._daemon is not None
                    self._daemon.terminate()
                case _ if part:
                    self.run(part)

    def run(self, script: str) -> None:
        """Run lines of a shell; the lab's guests are libvirt-lxc's."""
        self.host.place.run(["sh", "-euc", script], env={"LIBVIRT_DEFAULT_URI": "lxc:///system"})


@pytest.fixture
def administrator(scene: Scene, daemon: StartDaemon) -> Iterator[Administrator]:
    """One whose host runs libvirt-hook-qemu and has kvm-portfwd installed."""
    host = scene.host
    with ExitStack() as at_end:
        host.write("/usr/local/bin/kvm-portfwd", f'#!/bin/sh\nexec {host.python} -m fwdaemon "$@"\n')
        host.write("/etc/portfwd.toml", HEAD)
        host.write(f"{HOOKS}/hooks.json", HOOKS_JSON)
        host.write(f"{HOOKS}/hooks", hook_script("web", RULES))
        host.run("chmod", "0755", "/usr/local/bin/kvm-portfwd", f"{HOOKS}/hooks")
        for name in ("qemu", "lxc"):
            host.run("ln", "-s", "hooks", f"{HOOKS}/{name}")
        at_end.callback(host.run, "rm", "-rf", HOOKS, "/etc/portfwd.d")
        # libvirt looks for hooks when it starts, and then has them run for the domains that are there.
        host.libvirt.restart()
        yield Administrator(host, daemon)


@pytest.mark.on(LibvirtFirewall.IPTABLES, LibvirtFirewall.LEGACY)
def test_no_forward_is_down_on_the_way_there_and_back(administrator: Administrator, scene: Scene) -> None:
    host = scene.host
    scene.web.serve_tcp(9000)
    scene.web.serve_udp(7000)
    wait_until(lambda: host.outside.udp(PUBLIC4, 7000).answered, "the old hook's rules are there")
    there, back = STEPS[:-1], STEPS[-1]
    before = host.snapshot_foreign()
    with scene.converse(9000).never_pausing():
        with always_answered(host):
            for step in there:
                administrator.follow(step)
        assert "DNAT-web" not in host.snapshot_foreign()
        # In iptables-legacy the old tool's NAT goes ahead of everybody's, and only then it makes its accept rule.
        its_own_gap = host.flavour.firewall is LibvirtFirewall.LEGACY
        with nullcontext() if its_own_gap else always_answered(host):
            administrator.follow(back)
    scene.answers(lambda: host.outside.fetch(PAGE), f"web {CLIENT4}")
    assert host.own_rules() == ""
    # The chains are others than before, so they are listed in another order.
    assert sorted(host.snapshot_foreign().splitlines()) == sorted(before.splitlines())


@pytest.mark.on(LibvirtFirewall.IPTABLES)
def test_guests_start_when_the_hook_has_gone(administrator: Administrator, scene: Scene) -> None:
    for step in STEPS[:-1]:
        administrator.follow(step)
    scene.web.stop()
    scene.web.start()
    scene.answers(lambda: scene.host.outside.fetch(PAGE), f"web {CLIENT4}")


@pytest.mark.on(LibvirtFirewall.IPTABLES)
def test_gates_and_rules_of_an_earlier_version_are_replaced(scene: Scene) -> None:
    old = "-m connmark --mark 0x2000000/0x2000000 -m comment --comment kvm-portfwd -j ACCEPT"
    scene.host.run("iptables-nft", "-w", "-I", "FORWARD", *old.split())
    scene.daemon(entry("web", "8000:80", "WEB4"))
    scene.answers(lambda: scene.host.outside.fetch(PAGE), f"web {CLIENT4}")
    rules = scene.host.run("iptables-nft", "-S", "FORWARD").stdout
    assert rules.count("kvm-portfwd") == 1
    assert "connmark" not in rules
