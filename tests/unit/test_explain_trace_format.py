"""How the walk is shown: on a terminal, as JSON, and where there is none."""

import json
from dataclasses import replace

import pytest

from fwdaemon.cli import main
from fwdaemon.errors import ConfigError
from fwdaemon.explain.arrival import parse_request
from fwdaemon.explain.report import Cause, as_json, as_text
from fwdaemon.explain.trace import refused
from tests.unit.explaining import own
from tests.unit.trace_scene import FORWARD, HELD, MAIN, WEB, cause, config, forward_chain, host, libvirt, ours, told


def test_a_configuration_that_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        config("nonsense = 1\n[[forward]]\n")
    report = refused(parse_request(":80"), caught.value, host())
    assert cause(report) is Cause.CONFIGURATION_REFUSED
    assert report.commands == ["kvm-portfwd reload"]
    off = refused(parse_request(":80"), caught.value, host(daemon_pid=None))
    assert off.commands == ["systemctl enable --now kvm-portfwd"]
    assert report.sentence.startswith(f"Fix {MAIN}:1: ")


HOSTILE = 'x"; `reboot` \x1b[31m\n' + "y" * 200


def test_on_a_terminal_it_fits_and_commands_stay_whole() -> None:
    domain = replace(WEB, name=HOSTILE, running=False, interfaces=())
    held = (HELD[0], own("198.51.100.1/24", "eth\x1b0"), HELD[2])
    world = host(rules=[], held=held)
    report = told(text=FORWARD.replace('"web"', json.dumps(HOSTILE)), said=libvirt(domain), world=world)
    text = as_text(report, terminal=True, unicode=True)
    assert all(len(line) <= 80 or "`" in line for line in text.splitlines())
    assert all(character.isprintable() for character in text.replace("\n", ""))
    assert f"`virsh -c qemu:///system start {WEB.uuid}`" in text
    assert "✗ domain" in text
    assert "NO domain" in as_text(report, terminal=True, unicode=False)
    assert as_text(report, terminal=False, unicode=True).splitlines()[-1] == report.sentence


def test_the_keys_of_json() -> None:
    found = json.loads(as_json(told(world=host(rules=[*ours(), forward_chain(policy="drop")]))))
    keys = {"schema_version", "connection", "works", "cause", "entry", "sentence", "commands", "steps"}
    assert found.keys() == keys
    assert found["entry"] == {"file": "/etc/portfwd.toml", "line": 3}
    assert found["cause"] == "refused"
    assert found["commands"] == ["kvm-portfwd reload"]
    chain = next(step["chain"] for step in found["steps"] if step["state"] == "no")
    assert chain["verdict"] == "refuses"
    assert (chain["family"], chain["table"], chain["name"], chain["policy"]) == ("inet", "t", "c", "drop")


def test_a_connection_that_cannot_be_understood_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "web:80"]) == 2
    assert capsys.readouterr().err.startswith("kvm-portfwd: 'web' is not an IP address")
