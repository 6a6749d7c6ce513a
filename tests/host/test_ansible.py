"""The Ansible collection keeps entries on a host: checked first, changed once, and never left half done."""

import json
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from tests.conftest import MakeLxcGuest, MakeNetwork, StartDaemon
from tests.host.conftest import HEAD
from tests.lab.domain import Link
from tests.lab.host import PUBLIC4, Host
from tests.lab.place import wait_until
from tests.lab.release import LibvirtFirewall

COLLECTION: Final = Path(__file__).parents[2] / "packaging/ansible"
DIRECTORY: Final = "/run/ansible"
SHOP: Final = "/etc/portfwd.d/ansible-forward-shop.toml"
SETTINGS: Final = {
    "ANSIBLE_COLLECTIONS_PATH": DIRECTORY,
    "ANSIBLE_LOCAL_TEMP": f"{DIRECTORY}/local",
    "ANSIBLE_REMOTE_TEMP": f"{DIRECTORY}/remote",
    "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
    "LC_ALL": "C.UTF-8",
}
Options = Mapping[str, object]

# The environment with ansible-core is this machine's, and these hosts are of its release.
pytestmark = pytest.mark.on(LibvirtFirewall.IPTABLES)


class Playbooks:
    """Runs the collection's modules on a host, as root there."""

    def __init__(self, host: Host) -> None:
        self._host = host
        host.run("mkdir", "-p", f"{DIRECTORY}/ansible_collections/kvm_portfwd")
        host.run("ln", "-sfn", str(COLLECTION), f"{DIRECTORY}/ansible_collections/kvm_portfwd/host")
        script = f'#!/bin/sh\nexec {host.python} -m fwdaemon "$@"\n'
        host.run("install", "-m", "755", "/dev/stdin", f"{DIRECTORY}/kvm-portfwd", stdin=script)

    def run(self, *tasks: Options) -> list[dict[str, Any]]:
        """Give what each task returned; one that fails does not keep the next from its turn."""
        registered = [{**task, "register": f"r{number}", "ignore_errors": True} for number, task in enumerate(tasks)]
        results = "{{ [" + ", ".join(f"r{number}" for number in range(len(tasks))) + "] | to_json }}"
        kept = {"ansible.builtin.copy": {"content": results, "dest": f"{DIRECTORY}/results"}}
        play = [{"hosts": "localhost", "gather_facts": False, "tasks": [*registered, kept]}]
        self._host.write(f"{DIRECTORY}/play.json", json.dumps(play))
        ansible = str(Path(sys.executable).parent / "ansible-playbook")
        self._host.place.run([ansible, f"{DIRECTORY}/play.json"], env=SETTINGS)
        found: list[dict[str, Any]] = json.loads(self._host.read(f"{DIRECTORY}/results"))
        return found


def task(module: str, name: str, /, **options: object) -> dict[str, object]:
    """Write a task of one entry."""
    return {f"kvm_portfwd.host.{module}": {"name": name, "program": f"{DIRECTORY}/kvm-portfwd", **options}}


def test_a_forward_comes_changes_and_goes_with_its_task(
    host: Host, network: MakeNetwork, lxc_guest: MakeLxcGuest, daemon: StartDaemon
) -> None:
    network("default", "192.168.122.0/24")
    lxc_guest("web1", Link("default", ("192.168.122.10/24",)))
    daemon(HEAD)
    playbooks = Playbooks(host)
    shop = task("forward", "shop", domain="web1", ports=["8080:80"])
    trial, made, again = playbooks.run({**shop, "check_mode": True, "diff": True}, shop, shop)
    assert (trial["changed"], trial["reloaded"]) == (True, False)
    assert trial["diff"]["after"].splitlines()[1:] == ["[[forward]]", 'domain = "web1"', 'ports = ["8080:80"]']
    # That the trial wrote nothing shows in what the next one found to do.
    assert (made["changed"], made["reloaded"]) == (True, True)
    assert (again["changed"], again["reloaded"]) == (False, False)
    wait_until(lambda: host.outside.fetch(f"http://{PUBLIC4}:8080/").text.startswith("web1 "), "8080 answers")

    wrong = task("forward", "shop", domain="web1", ports=["8080:80", "99999"])
    taken = task("forward", "other", domain="web2", ports=["8080:80"])
    status = {"kvm_portfwd.host.status_info": {"program": f"{DIRECTORY}/kvm-portfwd"}}
    refused, conflict, shown = playbooks.run(wrong, taken, status)
    assert f"{SHOP}:4: forward 1: ports[2]" in refused["msg"]
    assert "already claimed" in conflict["msg"]
    assert (shown["running"], shown["status"]["counts"]["active"]) == (True, 1)
    assert host.outside.fetch(f"http://{PUBLIC4}:8080/").answered

    gone, still = playbooks.run(*[task("forward", "shop", state="absent")] * 2)
    assert (gone["changed"], gone["reloaded"], still["changed"]) == (True, True, False)
    wait_until(lambda: not host.outside.fetch(f"http://{PUBLIC4}:8080/").answered, "8080 is closed")
    assert host.run("ls", "/etc/portfwd.d").stdout == ""


def test_without_a_daemon_entries_are_written_for_its_start_and_text_stays_text(host: Host) -> None:
    host.write("/etc/portfwd.toml", HEAD)
    name = 'a "guest"\\ \u007f\nports = "1-65535"'
    mail = task("nat", "mail", domain="mail", public="198.51.100.8", assign="eth0")
    public = task("route", "public", network="public", addresses=["203.0.113.64/29"], sources=["192.0.2.0/24"])
    strange = task("forward", "strange", domain=name, ports=["80"])
    outside = task("forward", "../../tmp/x", domain="web1", ports=["80"])
    made, routed, odd, named = Playbooks(host).run(mail, public, strange, outside)
    assert (made["changed"], made["reloaded"], routed["changed"]) == (True, False, True)
    assert tomllib.loads(host.read(odd["path"])) == {"forward": [{"domain": name, "ports": ["80"]}]}
    assert "becomes part of a file name" in named["msg"]
    names = ("forward-strange", "nat-mail", "route-public")
    assert host.run("ls", "/etc/portfwd.d").stdout.split() == [f"ansible-{name}.toml" for name in names]
    assert host.run("stat", "-c", "%U %a", "/etc/portfwd.d/ansible-nat-mail.toml").stdout == "root 644\n"
