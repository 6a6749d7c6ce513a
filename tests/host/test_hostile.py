"""Names are anybody's text: they reach neither a rule nor a log line as syntax."""

import json

import pytest

from tests.conftest import MakeLxcGuest, MakeNetwork, StartDaemon
from tests.lab.domain import Link
from tests.lab.host import CLIENT4, PUBLIC4, Host
from tests.lab.place import wait_until
from tests.host.conftest import HEAD, entry

URL = f"http://{PUBLIC4}:8000/"


@pytest.mark.parametrize(
    "name",
    [
        """a"; } flush ruleset # --comment '$(reboot)""",
        "--comment",
        "-j ACCEPT\\",
        "x" * 63,
        "\u202eweb \x85",
    ],
)
def test_a_hostile_name_is_only_a_name(
    host: Host, network: MakeNetwork, lxc_guest: MakeLxcGuest, daemon: StartDaemon, name: str
) -> None:
    network("default", "192.168.122.0/24")
    lxc_guest(name, Link("default", ("192.168.122.10/24",)))
    foreign = host.snapshot_foreign()
    # A JSON string is a TOML string.
    running = daemon(HEAD + entry("NAME", "8000:80", "192.168.122.10").replace('"NAME"', json.dumps(name)))
    wait_until(lambda: host.outside.fetch(URL).text == f"{name} {CLIENT4}", "the guest answers")
    added = [line.text for line in running.log_lines() if line.text.startswith("added ") and "gate" not in line.text]
    assert len(added) == 1
    assert added[0].isprintable()
    assert host.snapshot_foreign() == foreign
    host.libvirt.virsh("destroy", "--domain", name)
    running.wait_log("^removed ")
    assert "8000" not in host.own_rules()
