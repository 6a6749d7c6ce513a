"""The commands that docs/automation.md prints for virsh do what it says, on a guest of the name it says."""

import re
from pathlib import Path
from typing import Final

import pytest

from tests.conftest import MakeLxcGuest, MakeNetwork, StartDaemon
from tests.host.conftest import HEAD
from tests.host.typed import typed
from tests.lab.domain import Link
from tests.lab.host import CLIENT4, PUBLIC4, Host
from tests.lab.place import wait_until
from tests.lab.release import LibvirtFirewall

PAGE: Final = (Path(__file__).parents[2] / "docs/automation.md").read_text(encoding="utf-8")


def shown(language: str, section: str) -> list[str]:
    """The blocks in that language below a heading."""
    [text] = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.mark.in_turn
@pytest.mark.on(LibvirtFirewall.LEGACY, LibvirtFirewall.NFTABLES)
def test_a_guest_gets_what_the_page_has_it_ask_for(
    host: Host, network: MakeNetwork, lxc_guest: MakeLxcGuest, daemon: StartDaemon
) -> None:
    network("default", "192.168.122.0/24")
    guest = lxc_guest("ci-7", Link("default", ("192.168.122.10/24",)))
    guest.serve_tcp(22)
    [file] = shown("toml", "The host's file")
    uri = HEAD.removeprefix("[daemon]\n")
    daemon(file.replace("[daemon]\n", f"[daemon]\n{uri}"))
    ask, withdraw = shown("sh", "virsh")
    typed(host, ask)
    wait_until(lambda: host.outside.fetch(f"http://{PUBLIC4}:8080/").text == f"ci-7 {CLIENT4}", "8080 answers")
    [ssh] = shown("sh", "The host's file")
    wait_until(lambda: typed(host, ssh.replace("vmhost", PUBLIC4)).startswith("ci-7 "), "its port 22 answers")
    typed(host, withdraw)
    wait_until(lambda: not host.outside.fetch(f"http://{PUBLIC4}:8080/").answered, "8080 is closed")
