"""What agents and neighbours said, as a later start finds it."""

import json
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from uuid import UUID

import pytest

from fwdaemon.core.inventory import (
    AddressSource,
    Domain,
    GuestInterface,
    LearnedAddress,
    MacClaim,
    Neighbour,
    ObservedDomain,
)
from fwdaemon.hostnet.owned_state import Learned

MAC, OTHER = "52:54:00:00:00:01", "52:54:00:00:00:02"
INTERFACE = GuestInterface(MAC, "default", "virbr0", "vnet0")
WEB = ObservedDomain(Domain("web", UUID(int=1), running=True, interfaces=(INTERFACE,)), instance=3)
SAID = MacClaim(MAC, LearnedAddress(ip_address("2001:db8::7"), AddressSource.AGENT))
NEAR = Neighbour("virbr0", MAC, ip_address("192.168.122.10"))
FOREIGN = Neighbour("eth0", OTHER, ip_address("198.51.100.1"))


def test_what_was_said_counts_for_the_same_run_of_the_domain_only(tmp_path: Path) -> None:
    Learned(tmp_path).keep([WEB], {WEB.domain.uuid: [SAID]}, [NEAR, FOREIGN])
    later = Learned(tmp_path)
    assert (later.said(WEB), later.neighbours([WEB])) == ((SAID,), (NEAR,))
    again = replace(WEB, instance=4)
    assert (later.said(again), later.neighbours([again])) == ((), ())


def test_what_was_known_first_stays_first(tmp_path: Path) -> None:
    said = [MacClaim(MAC, LearnedAddress(ip_address(f"2001:db8::{end}"), AddressSource.AGENT)) for end in (9, 10, 1)]
    Learned(tmp_path).keep([WEB], {WEB.domain.uuid: said}, ())
    assert Learned(tmp_path).said(WEB) == tuple(said)


def test_what_is_not_said_any_more_is_not_found(tmp_path: Path) -> None:
    learned = Learned(tmp_path)
    learned.keep([WEB], {WEB.domain.uuid: [SAID]}, [NEAR])
    learned.keep([replace(WEB, instance=-1)], {}, [NEAR])
    assert json.loads((tmp_path / "learned.json").read_text()) == []


def test_only_what_differs_is_written(tmp_path: Path) -> None:
    learned, path = Learned(tmp_path), tmp_path / "learned.json"
    learned.keep([WEB], {}, [NEAR])
    before = path.stat().st_ino
    assert learned.keep([WEB], {}, [FOREIGN, NEAR])
    assert path.stat().st_ino == before


def test_it_is_written_again_where_its_file_went(tmp_path: Path) -> None:
    learned, path = Learned(tmp_path), tmp_path / "learned.json"
    learned.keep([WEB], {}, [NEAR])
    path.unlink()
    assert learned.keep([WEB], {}, [NEAR])
    assert Learned(tmp_path).neighbours([WEB]) == (NEAR,)


@pytest.mark.parametrize(
    "change",
    [{"domain": "web"}, {"instance": "three"}, {"address": "nowhere"}],
    ids=["no UUID", "no run", "no address"],
)
def test_what_is_no_record_is_none(tmp_path: Path, change: dict[str, str]) -> None:
    record = {"domain": str(WEB.domain.uuid), "instance": 3, "mac": MAC, "address": "192.168.122.10"}
    (tmp_path / "learned.json").write_text(json.dumps([{**record, **change}]))
    assert Learned(tmp_path).said(WEB) == ()
