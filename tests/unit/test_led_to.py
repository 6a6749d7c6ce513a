"""What entries lead to that name no interface, as a later start finds it."""

import json
from pathlib import Path
from uuid import UUID

import pytest

from fwdaemon import config as configuration
from fwdaemon.core.types import Family
from fwdaemon.hostnet.owned_state import LedTo
from fwdaemon.resolve.placement import Placement, desired_state
from tests.unit.test_placing import FIRST, SECOND, host, lines, web

CONFIG = configuration.parse({Path("portfwd.toml"): '[[forward]]\ndomain = "web"\nports = ["80"]\n'})


def test_a_second_interface_closes_nothing_across_a_restart(tmp_path: Path) -> None:
    before = Placement(CONFIG, host(web(FIRST)))
    LedTo(tmp_path).keep(before.chosen)
    both = host(web(FIRST, SECOND))
    assert lines(desired_state(CONFIG, both, LedTo(tmp_path).chosen)) == lines(before.desired) != []
    assert lines(desired_state(CONFIG, both)) == []


def test_what_is_forgotten_is_not_found(tmp_path: Path) -> None:
    kept = LedTo(tmp_path)
    kept.keep({(UUID(int=1), Family.IPV6): "52:54:00:00:00:01"})
    assert LedTo(tmp_path).chosen == {(UUID(int=1), Family.IPV6): "52:54:00:00:00:01"}
    kept.keep({})
    assert LedTo(tmp_path).chosen == {}


@pytest.mark.parametrize(
    "record",
    [{}, {"domain": "x", "family": "IPV4", "mac": ""}, {"domain": str(UUID(int=1)), "family": "IPV5", "mac": ""}],
    ids=["nothing", "no UUID", "no family"],
)
def test_what_is_no_choice_is_none(tmp_path: Path, record: dict[str, str]) -> None:
    (tmp_path / "interfaces.json").write_text(json.dumps([record]))
    assert LedTo(tmp_path).chosen == {}
