"""Forwards that are open for a while: who may open what, when it ends, and what it survives."""

import asyncio
import json
import threading
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from fwdaemon.config import parse
from fwdaemon.config.metadata import read_opening
from fwdaemon.control.listener import Peer
from fwdaemon.control.protocol import INVALID_PARAMETER, PERMISSION_DENIED, REFUSED, CallError
from fwdaemon.core.exposures import Nat
from fwdaemon.core.inventory import Occupied
from fwdaemon.core.report import ApplyResult, Fault, FaultKind, joined
from fwdaemon.core.state import Desired
from fwdaemon.core.types import Address, Family, Origin, Protocol, Until
from fwdaemon.legacy.model import OWN_CHAINS
from fwdaemon.resolve.flows import Flow
from fwdaemon.resolve.wishes import Unavailable
from fwdaemon.rulesets import nft_listing, xt_listing
from fwdaemon.rulesets.packet import Match, System
from fwdaemon.status.reloads import Start
from fwdaemon.status.temporary import FILE, Deadline, Now, known, now, with_temporary
from tests.unit.daemon_scene import MAIN, RULE, SSH, SSH_RULE, WEB, Scene, play, prepared
from tests.unit.memory_backend import MemoryBackend

HOUR = 3600
OTHER = "web1: tcp *:8022 -> 192.168.122.50:22"


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Scene:
    return prepared(tmp_path, monkeypatch, caplog)


def wish(*ports: str, **more: Any) -> dict[str, Any]:
    return {"domain": "web1", "ports": list(ports), "sources": [], **more}


async def refusal(scene: Scene, **parameters: Any) -> str:
    with pytest.raises(CallError) as refused:
        await scene.ask("Open", **parameters)
    assert refused.value.name == REFUSED
    return "\n".join(refused.value.parameters["reasons"])


def test_it_is_open_until_its_time_is_over(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    async def act() -> None:
        async with scene.running_daemon():
            await scene.until(lambda: scene.written == {RULE})
            (opening,) = (await scene.ask("Open", **wish("8022:22", seconds=HOUR)))["openings"]
            assert (opening["state"], opening["remaining_seconds"], opening["origin"]) == (
                "active",
                HOUR,
                "temporary:1",
            )
            assert opening["opened_by"].startswith("uid 0, pid ")
            assert opening["opened_ports"] == "8022:22"
            assert scene.written == {RULE, OTHER}
            scene.pass_by(HOUR - 1)
            (row,) = [row for row in (await scene.ask("Status"))["openings"] if row["until"]]
            assert row["remaining_seconds"] == 1
            scene.pass_by(1)
            await scene.until(lambda: scene.written == {RULE})

    play(act())
    assert f"removed {OTHER} (its time is over)" in caplog.messages
    assert any(line.startswith("opened 8022:22 to web1 until ") for line in caplog.messages)
    assert "closed 8022:22 to web1: its time is over" in caplog.messages


@pytest.mark.parametrize(("passed", "by_wall"), [(10, HOUR), (HOUR, -HOUR)], ids=["set ahead", "put back"])
def test_it_ends_by_either_clock(scene: Scene, passed: float, by_wall: float) -> None:
    async def act() -> None:
        async with scene.running_daemon():
            await scene.ask("Open", **wish("8022:22", seconds=HOUR))
            assert OTHER in scene.written
            scene.pass_by(passed, by_wall=by_wall)
            await scene.until(lambda: scene.written == {RULE})

    play(act())


def test_where_one_clock_alone_ends_it_the_reply_says_so(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    apply = MemoryBackend.apply

    def on_one_clock(backend: MemoryBackend, desired: Desired, *, full: bool) -> ApplyResult:
        lasting = any(item.until is not None for item in desired.forwards)
        faults = (Fault(FaultKind.ONE_CLOCK),) if lasting else ()
        return joined(apply(backend, desired, full=full), ApplyResult(faults=faults))

    async def act() -> None:
        async with scene.running_daemon():
            assert not (await scene.ask("Open", **wish("8022:22")))["warnings"]
            monkeypatch.setattr(MemoryBackend, "apply", on_one_clock)
            (warning,) = (await scene.ask("Open", **wish("8023:22")))["warnings"]
            assert "the package ipset" in warning
            assert (await scene.ask("Status"))["problems"] == [warning]

    play(act())


def test_it_survives_a_reload_and_a_restart_and_ends_while_no_daemon_runs(scene: Scene) -> None:
    async def act() -> None:
        async with scene.running_daemon():
            await scene.ask("Open", **wish("8022:22", seconds=HOUR))
            scene.text = WEB + SSH
            await scene.ask("Reload")
            assert scene.written == {RULE, SSH_RULE, OTHER}
        scene.libvirt.begun = 0
        async with scene.running_daemon():
            await scene.until(lambda: scene.written == {RULE, SSH_RULE, OTHER})
        scene.libvirt.begun = 0
        scene.now = Now(scene.now.wall + HOUR, scene.now.boottime + HOUR, "first")
        async with scene.running_daemon():
            await scene.until(lambda: scene.written == {RULE, SSH_RULE})
        assert json.loads((scene.place / "state/temporary.json").read_text()) == []

    play(act())


@pytest.mark.parametrize(
    ("wall", "left"),
    [(600, HOUR - 600), (HOUR, 0), (-60, 0), (0, HOUR)],
    ids=["in time", "too late", "a clock behind its beginning", "at once"],
)
def test_after_a_restart_of_the_host_the_clock_on_the_wall_is_left(wall: int, left: int) -> None:
    began = Now(1_772_000_000.0, 5_000.0, "first")
    again = Now(began.wall + wall, 10.0, "second")
    resumed = Deadline.after(HOUR, began).resumed(again)
    assert (max(0, resumed.left(again)), resumed.boot) == (left, "second")
    assert resumed.resumed(again) == resumed


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


PUBLIC = ip_address("198.51.100.7")
OWN_NAT = '[[nat]]\ndomain = "web2"\npublic = "198.51.100.7"\n'
GIVEN = Nat("web2", PUBLIC, ip_address("192.168.122.51"), origin=Origin(Path("web2"), 1, "web2"))


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


def test_it_is_closed_before_its_time(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    async def act() -> None:
        async with scene.running_daemon():
            await scene.ask("Open", **wish("8022:22", "8023:23/tcp"))
            assert await scene.ask("Close", domain="web1", ports=["8023:23"]) == {"closed": ["8023:23/tcp"]}
            assert scene.written == {RULE, OTHER}
            assert await scene.ask("Close", domain="web1", ports=[]) == {"closed": ["8022:22"]}
            assert scene.written == {RULE}
            with pytest.raises(CallError, match="no such temporary forward"):
                await scene.ask("Close", domain="web1", ports=[])

    play(act())
    assert any(line.startswith(f"removed {OTHER} (closed by uid 0, pid ") for line in caplog.messages)


def test_what_a_new_configuration_claims_is_closed(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    async def act() -> None:
        async with scene.running_daemon():
            await scene.ask("Open", **wish("22:2222"))
            scene.text = WEB + SSH
            await scene.ask("Reload")
            assert scene.written == {RULE, SSH_RULE}

    play(act())
    assert "closed 22:2222 to web1: /etc/portfwd.toml:6 claims it" in caplog.messages


def test_it_is_open_to_a_set_of_the_configuration_until_there_is_no_such_set(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    scene.text = WEB + '[[set]]\nname = "office"\naddresses = ["203.0.113.0/24"]\n'

    async def act() -> None:
        async with scene.running_daemon():
            await scene.ask("Reload")
            said = await refusal(scene, **wish("8022:22") | {"sources": ["set:offce"]})
            assert 'did you mean "set:office"?' in said
            (opening,) = (await scene.ask("Open", **wish("8022:22") | {"sources": ["set:office"]}))["openings"]
            assert opening["sources"] == ["203.0.113.0/24"]
            scene.text = WEB
            await scene.ask("Reload")
            assert scene.written == {RULE}

    play(act())
    assert any(line.startswith("closed 8022:22 to web1: the configuration has no") for line in caplog.messages)


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


def test_where_it_cannot_be_kept_nothing_is_opened(scene: Scene) -> None:
    (scene.place / "state").write_text("no directory")

    async def act() -> None:
        async with scene.running_daemon():
            assert "cannot be kept" in await refusal(scene, **wish("8022:22"))

    play(act())


def test_commands_without_a_daemon_know_of_it(scene: Scene) -> None:
    scene.now = now()

    async def act() -> None:
        async with scene.running_daemon():
            await scene.ask("Open", **wish("8022:22"))

    play(act())
    config = with_temporary(parse({MAIN: WEB}), scene.place / "state")
    assert [str(entry.origin) for entry in config.forwards] == ["/etc/portfwd.toml:1", "temporary:1"]


def test_a_damaged_record_closes_it(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    (scene.place / "state").mkdir()
    (scene.place / "state/temporary.json").write_text('[{"number": 1}]')
    scene.start = replace(Start(parse({MAIN: WEB}), {}))

    async def act() -> None:
        async with scene.running_daemon():
            await scene.until(lambda: scene.written == {RULE})

    play(act())
    assert any("what was opened for a while is closed" in line for line in caplog.messages)


@pytest.mark.parametrize("time", ["Infinity", "NaN", "1e300", "[]"])
def test_a_record_with_a_time_that_is_none_closes_it(tmp_path: Path, time: str) -> None:
    until = f'"until": {time}, "boottime": 1, "boot": "x", "seconds": 9'
    text = f'[{{"number": 1, "domain": "web", "ports": "80", "sources": [], "by": "uid 0", {until}}}]'
    (tmp_path / "temporary.json").write_text(text, encoding="utf-8")
    assert known(tmp_path, lambda: Now(0.0, 0.0, "x")) == ()


def test_who_closes_is_answered_though_a_pass_has_followed_before_it_is_written(scene: Scene) -> None:
    async def act() -> None:
        async with scene.running_daemon():
            await scene.ask("Open", **wish("8022:22"))
            writing, written = threading.Event(), threading.Event()
            openings = scene.daemon._standing.openings  # noqa: SLF001  a disk that takes its time

            def stall() -> bool:
                writing.set()
                return written.wait(60)

            openings._worker.submit(stall)  # noqa: SLF001  see above
            closing = asyncio.create_task(scene.ask("Close", domain="web1", ports=[]))
            await scene.until(writing.is_set)
            await asyncio.sleep(0)
            scene.pass_by(0)
            await scene.until(lambda: scene.written == {RULE})
            written.set()
            assert await asyncio.wait_for(closing, 60) == {"closed": ["8022:22"]}

    play(act())


@pytest.mark.parametrize(("table", "matches"), [("kvm_portfwd", 1), ("theirs", 2)])
def test_explain_takes_what_is_listed_of_ours_for_open_in_nftables(table: str, matches: int) -> None:
    where = {"family": "ip", "table": table}
    left = {"meta": {"key": "l4proto"}}, {"meta": {"key": "time"}}
    tests = [{"match": {"op": "==", "left": left[0], "right": "tcp"}}]
    tests.append({"match": {"op": "<", "left": left[1], "right": "2026-11-30 09:00:00"}})
    hook = {"type": "nat", "hook": "prerouting", "prio": -105, "policy": "accept"}
    listed = [
        {"table": {"family": "ip", "name": table, "handle": 1}},
        {"chain": {**where, "name": "here", "handle": 2, **hook}},
        {"rule": {**where, "chain": "here", "handle": 3, "expr": [*tests, {"dnat": {"addr": "192.0.2.1"}}]}},
    ]
    (chain,) = nft_listing.base_chains(json.dumps({"nftables": listed}), {})
    (rule,) = chain.chains["here"]
    assert sum(isinstance(statement, Match) for statement in rule.statements) == matches


@pytest.mark.parametrize("chain", ["KVMPF_OUT", "THEIRS"])
def test_explain_takes_what_is_listed_of_ours_for_open_in_the_legacy_tables(chain: str) -> None:
    save = (
        f"*nat\n:PREROUTING ACCEPT [0:0]\n:{chain} - [0:0]\n-A {chain} -p tcp -m time --datestop 2026-11-30T12:00:00"
        " -j DNAT --to-destination 192.0.2.1\nCOMMIT\n"
    )
    (found,) = xt_listing.base_chains(save, System.LEGACY, Family.IPV4)
    (rule,) = found.chains[chain]
    assert (sum(isinstance(each, Match) for each in rule.statements) == 1) is (chain in OWN_CHAINS)


def test_what_it_carries_goes_on_with_another_end_and_ends_with_it(scene: Scene) -> None:
    guest, client, host = map(ip_address, ("192.168.122.50", "203.0.113.9", "198.51.100.1"))
    flow = Flow(Protocol.TCP, client, host, 8022, guest, 22, client, 40000)

    async def act() -> None:
        async with scene.running_daemon():
            await scene.ask("Open", **wish("8022:22", seconds=HOUR))
            scene.connections.flows = [flow]
            await scene.ask("Open", **wish("8022:22", seconds=2 * HOUR))
            await scene.ask("Open", **wish("8023:23", seconds=HOUR))
            assert scene.connections.flows == [flow]
            scene.pass_by(2 * HOUR)
            await scene.until(lambda: not scene.connections.flows)

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
