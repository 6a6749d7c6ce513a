"""The setting that lets packets from 127.0.0.0/8 leave, on the real kernel."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fwdaemon.ledger import Ledger
from fwdaemon.localnet import LocalNet
from fwdaemon.outcome import Outcome
from tests.kernel.links import Links, linked


@pytest.fixture
def links(lab: None) -> Iterator[Links]:
    del lab
    with linked() as links:
        links.host.ip("link add virbr2 type bridge")
        yield links


def localnet(directory: Path) -> LocalNet:
    return LocalNet(Ledger("route-localnet", directory))


def on(links: Links) -> list[str]:
    """Where it is on."""
    lines = links.host.run("sysctl", "-a", "--pattern", r"\.route_localnet").splitlines()
    return [line.split(".")[3] for line in lines if line.endswith("= 1")]


def test_it_is_on_where_it_is_needed_and_only_there(links: Links, tmp_path: Path) -> None:
    kept = localnet(tmp_path)
    assert kept.keep({"virbr1"}) == Outcome(changed=True)
    assert on(links) == ["virbr1"]
    kept.release({"virbr1", "virbr2"})
    assert on(links) == ["virbr1"]
    assert kept.keep({"virbr2"}) == Outcome(changed=True)
    assert on(links) == ["virbr2"]
    assert kept.keep({"virbr2"}) == Outcome()
    kept.release(())
    assert on(links) == []


def test_a_later_run_knows_whose_doing_it_was(links: Links, tmp_path: Path) -> None:
    links.host.sysctl("ipv4.conf.eth0.route_localnet=1")
    localnet(tmp_path).keep({"virbr1", "eth0"})
    assert on(links) == ["eth0", "virbr1"]
    localnet(tmp_path).release(())
    assert on(links) == ["eth0"]


def test_it_is_put_back_on(links: Links, tmp_path: Path) -> None:
    kept = localnet(tmp_path)
    kept.keep({"virbr1"})
    links.host.sysctl("ipv4.conf.virbr1.route_localnet=0")
    assert kept.keep({"virbr1"}) == Outcome(changed=True)
    links.host.ip("link del virbr1", "link add virbr1 type bridge")
    assert kept.keep({"virbr1"}) == Outcome(changed=True)
    assert on(links) == ["virbr1"]
    links.host.ip("link del virbr1")
    kept.release(())
    assert (tmp_path / "route-localnet").read_text() == ""


def test_a_name_with_dots_is_a_name(links: Links, tmp_path: Path) -> None:
    links.host.ip("link add br.100 type bridge")
    kept = localnet(tmp_path)
    assert kept.keep({"br.100"}) == Outcome(changed=True)
    assert links.host.run("sysctl", "-n", "net.ipv4.conf.br/100.route_localnet") == "1\n"
    kept.release(())
    assert on(links) == []


@pytest.mark.parametrize(
    "bridge", ["gone", "", ".", "..", "all", "default", "../../kernel", "a b", "x" * 300, "n\0", "n\n"]
)
def test_a_bridge_that_is_not_there_is_a_fault(links: Links, tmp_path: Path, bridge: str) -> None:
    kept = localnet(tmp_path)
    outcome = kept.keep({bridge, "virbr1"})
    assert outcome.changed
    (fault,) = outcome.faults
    assert fault.startswith("127.0.0.1 does not lead to guests: ")
    assert fault.isprintable()
    assert on(links) == ["virbr1"]
