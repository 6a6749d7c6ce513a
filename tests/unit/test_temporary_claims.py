"""Who may open what for a while, and what a forward that is open for a while never takes."""

from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from fwdaemon.config import parse
from fwdaemon.config.metadata import read_opening
from fwdaemon.control.listener import Peer
from fwdaemon.control.protocol import INVALID_PARAMETER, PERMISSION_DENIED, CallError
from fwdaemon.core.exposures import Nat
from fwdaemon.core.inventory import Occupied
from fwdaemon.core.types import Address, Origin, Protocol, Until
from fwdaemon.resolve.wishes import Unavailable
from fwdaemon.status.temporary import FILE, known
from tests.unit.daemon_scene import MAIN, RULE, WEB, Scene, play, prepared
from tests.unit.temporary import HOUR, refusal, wish

PUBLIC = ip_address("198.51.100.7")
OWN_NAT = '[[nat]]\ndomain = "web2"\npublic = "198.51.100.7"\n'
GIVEN = Nat("web2", PUBLIC, ip_address("192.168.122.51"), origin=Origin(Path("web2"), 1, "web2"))


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Scene:
    return prepared(tmp_path, monkeypatch, caplog)


@pytest.mark.parametrize(
    ("ports", "text"),
    [
        ("80", "*:80/tcp: web1 has it already (/etc/portfwd.toml:1)"),
        ("198.51.100.1:80", "198.51.100.1:80/tcp: web1 has it already (/etc/portfwd.toml:1)"),
        ("79-81:79-81", "*:79-81/tcp: web1 has it already (/etc/portfwd.toml:1)"),
        ("9000", "*:9000/tcp: ci-* has it already (/etc/portfwd.toml:4)"),
        ("7000", "*:7000/tcp: the host has it already"),
        ("7001", "*:7001/tcp: the host has it already"),
        ("0", "is out of range"),
        ("auto:22", "no range to come from"),
    ],
)
def test_it_never_takes_what_is_taken(scene: Scene, ports: str, text: str) -> None:
    scene.text = f'{WEB}[[forward]]\ndomain = "ci-*"\nports = ["9000"]\n'
    scene.sockets = {Occupied(Protocol.TCP, None, 7000), Occupied(Protocol.TCP, ip_address("192.0.2.1"), 7001)}

    async def act() -> None:
        async with scene.running_daemon():
            await scene.until(lambda: scene.written == {RULE})
            assert text in await refusal(scene, **wish(ports))
            assert scene.written == {RULE}
            assert known(scene.place / "state", lambda: scene.now) == ()

    play(act())


def test_nothing_is_opened_while_it_is_not_known_what_processes_have(scene: Scene) -> None:
    scene.sockets = None

    async def act() -> None:
        async with scene.running_daemon():
            text = await refusal(scene, **wish("7000"))
            assert text == "*:7000/tcp: the kernel does not report which ports processes of the host have"

    play(act())


@pytest.mark.parametrize("ports", ["8022:22", "198.51.100.7:8022:22"])
@pytest.mark.parametrize(
    ("text", "live", "local", "domain", "is_free"),
    [
        (OWN_NAT, (), {PUBLIC}, "web1", False),
        ("", (GIVEN,), {PUBLIC}, "web1", False),
        (OWN_NAT, (), {PUBLIC}, "web2", True),
        ("", (GIVEN,), {PUBLIC}, "web2", True),
    ],
    ids=["of a file", "of metadata", "its own by a file", "its own by metadata"],
)
def test_no_port_of_anothers_public_address_is_opened(  # noqa: PLR0913  a case
    text: str, live: tuple[Nat, ...], local: set[Address], domain: str, ports: str, *, is_free: bool
) -> None:
    unavailable = Unavailable(parse({MAIN: WEB + text}), frozenset(live), frozenset(local))
    entry = read_opening(domain, [ports], (), Origin(FILE, 1), Until(0, 0.0))
    found = [hindrance.names for _, hindrance in unavailable.hindrances(entry) if hindrance is not None]
    assert found == ([] if is_free else [("web2",)])


def test_a_public_address_that_is_not_this_hosts_has_its_ports_whatever_is_opened_on_every_address() -> None:
    entry = read_opening("web1", ["8022:22"], (), Origin(FILE, 1), Until(0, 0.0))
    assert not list(Unavailable(parse({MAIN: WEB + OWN_NAT})).hindrances(entry))


def test_two_of_one_wish_must_not_take_from_each_other(scene: Scene) -> None:
    async def act() -> None:
        async with scene.running_daemon():
            assert "already claimed at temporary:1" in await refusal(scene, **wish("8000:80", "8000:81"))

    play(act())


def test_the_same_once_more_has_another_end_and_sources_tell_two_apart(scene: Scene) -> None:
    here, there = ({"sources": [source]} for source in ("203.0.113.0/24", "192.0.2.0/24"))

    async def act() -> None:
        async with scene.running_daemon():
            await scene.ask("Open", **wish("8022:22", seconds=HOUR) | here)
            await scene.ask("Open", **wish("8022:23", seconds=HOUR) | there)
            assert "web1 has it already (temporary:1)" in await refusal(scene, **wish("8022:25"))
            again = await scene.ask("Open", **wish("8022:22", seconds=2 * HOUR) | here)
            assert [row["remaining_seconds"] for row in again["openings"]] == [2 * HOUR]
            kept = known(scene.place / "state", lambda: scene.now)
            assert [(item.number, item.deadline.seconds) for item in kept] == [(2, HOUR), (3, 2 * HOUR)]

    play(act())


def test_only_root_opens_and_what_is_no_wish_is_refused(scene: Scene) -> None:
    user = Peer(1 << 30, 1000, frozenset({1000}))
    strange: list[dict[str, Any]] = [
        wish("8022:22", seconds=0),
        wish("8022:22", seconds=8 * 24 * HOUR),
        wish("8022:22", seconds=True),
        {"domain": "web1", "ports": "8022:22", "sources": []},
        {"domain": "web1", "ports": ["8022:22"]},
    ]

    async def act() -> None:
        async with scene.running_daemon():
            scene.daemon._control._server.group = 1000  # noqa: SLF001  who may read
            calls: list[tuple[str, dict[str, Any]]] = [("Open", wish("8022:22")), ("Confirm", {}), ("Close", wish())]
            for method, parameters in calls:
                with pytest.raises(CallError, match=PERMISSION_DENIED):
                    await scene.ask(method, user, **parameters)
            for parameters in strange:
                with pytest.raises(CallError, match=INVALID_PARAMETER):
                    await scene.ask("Open", **parameters)
            assert "pattern" in await refusal(scene, **wish("8022:22") | {"domain": "web*"})

    play(act())


def test_a_port_is_assigned_that_nobody_has_and_an_assigned_one_is_not_taken(scene: Scene) -> None:
    scene.text = '[daemon]\nauto_ports = "20000-20009"\n' + WEB
    scene.sockets = {Occupied(Protocol.TCP, None, port) for port in range(20000, 20009)}

    async def act() -> None:
        async with scene.running_daemon():
            (opening,) = (await scene.ask("Open", **wish("auto:22", seconds=HOUR)))["openings"]
            assert (opening["ports"], opening["automatic"], opening["state"]) == ("20009", True, "active")
            assert "*:20009/tcp: " in await refusal(scene, **wish("20009:23"))
            scene.pass_by(HOUR)
            await scene.until(lambda: scene.written == {RULE})
            await scene.ask("Reload")
            # It is kept for the domain for a week.
            assert "*:20009/tcp: it is assigned to a domain" in await refusal(scene, **wish("20009:23"))

    play(act())
