"""What is kept of the leases that libvirt lists, or that are in its files: those of guests, the newest first."""

import json
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest

from fwdaemon.hypervisor.networks import Answers, DhcpFiles, NetworkReader, lease_claims, written_leases
from fwdaemon.resolve.snapshot import LARGEST

MAC, OTHER = "52:54:00:00:00:01", "52:54:00:00:00:02"


def lease(mac: str | None, address: str | None, expiry: int) -> dict[str, object]:
    return {"mac": mac, "ipaddr": address, "expirytime": expiry}


def test_the_newest_lease_of_a_guest_comes_first() -> None:
    leases = [
        lease(MAC, "192.168.122.2", 2),
        lease(MAC.upper(), "192.168.122.3", 3),
        lease(MAC, "192.168.122.9", 0),
        lease(MAC, "192.168.122.1", 1),
    ]
    told = [str(claim.learned.address) for claim in lease_claims(leases, {MAC})]
    assert told == ["192.168.122.9", "192.168.122.3", "192.168.122.2", "192.168.122.1"]


def test_leases_of_others_and_what_is_no_lease_are_not_kept() -> None:
    leases = [
        lease(OTHER, "192.168.122.2", 1),
        lease(None, "192.168.122.3", 1),
        lease(MAC, None, 1),
        lease(MAC, "192.168.122.999", 1),
    ]
    assert lease_claims(leases, {MAC}) == ()


def written(*leases: tuple[str, int]) -> str:
    """What dnsmasq's helper writes of addresses that the guest has until then."""
    return json.dumps([{"mac-address": MAC, "ip-address": ip, "expiry-time": end} for ip, end in leases])


def test_leases_in_the_file_are_those_that_libvirt_tells() -> None:
    text = written(("192.168.122.2", 99), ("192.168.122.3", 100), ("192.168.122.4", 0)).encode()
    told = [lease(MAC, "192.168.122.3", 100), lease(MAC, "192.168.122.4", 0)]
    assert written_leases(text, 100.0) == told
    assert written_leases(b"", 100.0) == []


@pytest.mark.parametrize(
    "text",
    ["{", "[1]", '[{"mac-address": "1", "ip-address": "2"}]', "[" * 9999, "3", " " * (LARGEST + 1)],
)
def test_where_the_file_is_not_as_expected_libvirt_is_to_be_asked(tmp_path: Path, text: str) -> None:
    (tmp_path / "virbr0.status").write_text(text)
    files = DhcpFiles(tmp_path)
    assert files.leases("virbr0") is None
    assert files.leases("virbr1") is None


def test_a_name_leads_to_no_other_directory(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "virbr0.status").write_text("[]")
    (tmp_path / "default.hostsfile").write_text("")
    files = DhcpFiles(tmp_path / "in")
    assert files.leases("../virbr0") is None
    assert files.leases("virbr\0") is None
    assert files.stamp("../default") is None


@pytest.fixture
def connection() -> Iterator[libvirt.virConnect]:
    connection = libvirt.open("test:///default")
    yield connection
    connection.close()


class Networks:
    """A reader of networks on libvirt's in-process driver, and the lists that it asks for."""

    def __init__(self, connection: libvirt.virConnect, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._connection, self._answers = connection, Answers("test:///default")
        self.reader = NetworkReader(self._answers, DhcpFiles(directory))
        self.lists = 0
        question = libvirt.virConnect.listAllNetworks

        def noted(connection: libvirt.virConnect, flags: int = 0) -> list[libvirt.virNetwork]:
            self.lists += 1
            return question(connection, flags)

        monkeypatch.setattr(libvirt.virConnect, "listAllNetworks", noted)

    def addresses(self) -> list[str]:
        """The addresses that the guest is said to have."""
        self._answers.begin()
        (network,) = self.reader.observe(self._connection, {MAC})
        self._answers.end()
        return [str(claim.learned.address) for claim in network.claims]

    def asked(self) -> bool:
        """Whether libvirt was asked since the last call."""
        asked, self.lists = bool(self.lists), 0
        return asked


def test_a_lease_is_seen_without_asking_libvirt(
    connection: libvirt.virConnect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks, file = Networks(connection, tmp_path, monkeypatch), tmp_path / "virbr0.status"
    file.write_text("[]")
    assert networks.addresses() == []
    assert networks.asked()
    file.write_text(written(("192.168.122.9", 0)))
    assert networks.addresses() == ["192.168.122.9"]
    assert not networks.asked()


def test_networks_are_asked_for_again_when_they_are_in_doubt(
    connection: libvirt.virConnect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks = Networks(connection, tmp_path, monkeypatch)
    networks.addresses()
    assert networks.asked()
    (tmp_path / "default.hostsfile").write_text("52:54:00:00:00:01,192.168.122.9")
    networks.addresses()
    assert networks.asked()
    networks.reader.invalidate()
    networks.addresses()
    assert networks.asked()


def test_where_there_are_no_such_files_libvirt_is_asked_each_time(
    connection: libvirt.virConnect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks = Networks(connection, tmp_path / "absent", monkeypatch)
    for _ in range(2):
        networks.addresses()
        assert networks.asked()


def test_a_network_that_libvirt_could_not_tell_is_asked_for_again(
    connection: libvirt.virConnect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks, question = Networks(connection, tmp_path, monkeypatch), libvirt.virNetwork.XMLDesc
    networks.addresses()
    networks.reader.invalidate()
    monkeypatch.setattr(libvirt.virNetwork, "XMLDesc", lambda *_: "<")
    networks.addresses()
    assert networks.asked()
    monkeypatch.setattr(libvirt.virNetwork, "XMLDesc", question)
    networks.addresses()
    assert networks.asked()
    networks.addresses()
    assert not networks.asked()
