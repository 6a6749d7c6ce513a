"""Changes of the DHCP servers' files say "look again"; reading them does not."""

import asyncio
import gc
import json
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path

import pytest
from watchdog.observers.api import BaseObserver

from fwdaemon.core.report import ReasonKind
from fwdaemon.hypervisor.guest_addresses import LeaseWatch
from fwdaemon.kernel.process import budget_of_guests
from fwdaemon.resolve.snapshot import LeaseNews, read_leases
from tests.lab.place import PATIENCE
from tests.unit.saying import said

Scenario = Callable[[list[str]], Coroutine[None, None, None]]


def run(directory: Path, scenario: Scenario) -> None:
    """Run a scenario beside a watch, which leaves no thread behind."""

    async def with_watch() -> None:
        reasons: list[str] = []
        watch = LeaseWatch(lambda reason: reasons.append(said(reason)), budget_of_guests(), directory)
        watch.start()
        try:
            await scenario(reasons)
        finally:
            watch.close()

    before = set(threading.enumerate())
    asyncio.run(with_watch())
    assert set(threading.enumerate()) == before


async def until(reasons: list[str], *expected: str) -> None:
    async with asyncio.timeout(5):
        while not set(expected) & set(reasons):  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.01)


def replace(directory: Path, name: str, text: str = "[]") -> None:
    temporary = directory / f"{name}.new"
    temporary.write_text(text)
    temporary.rename(directory / name)


def replace_often(directory: Path, times: int) -> None:
    for _ in range(times):
        replace(directory, "default.macs")


def test_file_replaced_by_rename(tmp_path: Path) -> None:
    async def scenario(reasons: list[str]) -> None:
        replace(tmp_path, "virbr0.status")
        await until(reasons, "DHCP leases on virbr0 changed")
        replace(tmp_path, "default.hostsfile")
        await until(reasons, "DHCP reservations of network default changed")
        (tmp_path / "virbr0.status").unlink()

    run(tmp_path, scenario)


def test_renames_without_end_are_not_remembered(tmp_path: Path) -> None:
    async def scenario(reasons: list[str]) -> None:
        for _ in range(20):
            replace_often(tmp_path, 50)
            await asyncio.sleep(0.02)
        await until(reasons, "DHCP leases are watched again")
        reasons.clear()
        replace(tmp_path, "virbr0.status")
        await until(reasons, "DHCP leases on virbr0 changed", "DHCP leases are watched again")
        assert sum(type(thing).__name__ == "InotifyEvent" for thing in gc.get_objects()) < 700

    run(tmp_path, scenario)


def test_reading_and_other_files_say_nothing(tmp_path: Path) -> None:
    (tmp_path / "virbr0.status").write_text("[]")

    async def scenario(reasons: list[str]) -> None:
        (tmp_path / "virbr0.status").read_text()
        (tmp_path / "default.pid").write_text("1")
        await asyncio.sleep(0.2)
        assert reasons == []

    run(tmp_path, scenario)


def test_directory_that_appears_later(tmp_path: Path) -> None:
    directory = tmp_path / "libvirt" / "dnsmasq"

    async def scenario(reasons: list[str]) -> None:
        directory.mkdir(parents=True)
        await until(reasons, f"{directory} appeared")
        replace(directory, "virbr1.status")
        await until(reasons, "DHCP leases on virbr1 changed")

    run(directory, scenario)


def test_directory_that_is_removed_and_made_again(tmp_path: Path) -> None:
    directory = tmp_path / "dnsmasq"
    directory.mkdir()

    async def scenario(reasons: list[str]) -> None:
        directory.rmdir()
        await asyncio.sleep(0.2)
        directory.mkdir()
        await until(reasons, f"{directory} appeared")
        replace(directory, "virbr1.status")
        await until(reasons, "DHCP leases on virbr1 changed")

    run(directory, scenario)


def test_an_emitter_stopped_between_two_reads_logs_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A thread of watchdog's may look once more after the watch was moved or closed."""

    async def scenario() -> None:
        watch = LeaseWatch(lambda _: None, budget_of_guests(), tmp_path)
        watch.start()
        (emitter,) = watch._observer.emitters  # noqa: SLF001 - what a race does now and then, done on purpose
        watch.close()
        emitter.queue_events(0)

    asyncio.run(scenario())
    assert caplog.text == ""


def test_a_flood_of_leases_is_followed_in_part_and_its_end_is_not_missed(tmp_path: Path) -> None:
    strange = "what cannot be read is news each time"

    def flood() -> None:
        for _ in range(1000):
            replace(tmp_path, "virbr0.status", strange)

    async def scenario(reasons: list[str]) -> None:
        await asyncio.to_thread(flood)
        before = -1
        while before != len(reasons):
            before = len(reasons)
            await asyncio.sleep(0.5)  # whatever the flood has caused is there by then
        assert 0 < before < 700, before
        replace(tmp_path, "virbr0.status", strange)
        # What the flood took of the guests' budget has to be paid back first.
        async with asyncio.timeout(PATIENCE):
            while len(reasons) == before:  # noqa: ASYNC110 - what is waited for has no event
                await asyncio.sleep(0.01)

    run(tmp_path, scenario)


def test_a_watch_that_no_thread_is_to_be_had_for_is_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Watchdog 6.0 would lose its descriptors."""
    directory = tmp_path / "dnsmasq"
    late = f"DHCP leases are noticed with delay, as {directory} cannot be watched, trying again: can't start new thread"

    begun: list[str] = []

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def scenario(reasons: list[str]) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            patch.setattr(BaseObserver, "schedule", lambda *_, **__: begun.append("a watch"))
            directory.mkdir()
            async with asyncio.timeout(5):
                while late not in caplog.messages:  # noqa: ASYNC110 - what is waited for has no event
                    await asyncio.sleep(0.01)
        assert not begun
        await until(reasons, "DHCP leases are watched again")

    run(directory, scenario)


def written(**leases: str) -> bytes:
    """What dnsmasq's helper writes of MAC addresses, each with addresses that end so many seconds later."""
    items = [(mac, word.partition("+")) for mac, words in leases.items() for word in words.split()]
    return json.dumps(
        [
            {"ip-address": ip, "mac-address": f"52:54:00:00:00:{mac}", "expiry-time": int(end)}
            for mac, (ip, _, end) in items
        ]
    ).encode()


def macs(*ends: str) -> frozenset[str]:
    return frozenset(f"52:54:00:00:00:{end}" for end in ends)


def told(news: LeaseNews, **leases: str) -> ReasonKind | None:
    return news.kind("virbr0", read_leases(written(**leases)))


def test_a_lease_that_is_renewed_and_the_end_of_one_whose_guest_has_gone_are_no_news() -> None:
    news = LeaseNews(lambda: 0.0)
    news.follow(macs("aa"), frozenset())
    assert told(news, aa="192.168.122.20+100", bb="192.168.122.21+100") is ReasonKind.LEASES
    assert told(news, aa="192.168.122.20+200", bb="192.168.122.21+100") is None
    assert told(news, aa="192.168.122.20+200") is None
    assert told(news, aa="192.168.122.20+200", bb="192.168.122.22+300") is None
    assert told(news, aa="192.168.122.20+200 192.168.122.23+300", bb="192.168.122.22+300") is ReasonKind.LEASES
    # Of several, the one that ends last counts.
    assert told(news, aa="192.168.122.20+400 192.168.122.23+300", bb="192.168.122.22+300") is ReasonKind.LEASES
    assert told(news, bb="192.168.122.22+300") is ReasonKind.LEASES


BIG = b'[{"ip-address": "1", "mac-address": "2", "expiry-time": 1' + b"0" * 400 + b"}]"


@pytest.mark.parametrize(
    "text", [None, b"", b"{", b"[1]", b"{}x", b'[{"ip-address": "1"}]', b"[" * 9999, BIG, b" " * (1 << 20)]
)
def test_what_cannot_be_read_may_be_news(text: bytes | None) -> None:
    news = LeaseNews(lambda: 0.0)
    for _ in range(2):
        assert news.kind("virbr0", read_leases(text)) is ReasonKind.LEASES


def test_a_guest_has_one_first_lease_however_often_it_gives_that_back_or_reboots() -> None:
    clock = iter([0.0, 1.0, 2.0, 50.0, 55.0, 120.0, 121.0, 122.0])
    news = LeaseNews(lambda: next(clock))
    news.follow(macs("aa"), macs("aa"))
    assert told(news, aa="192.168.122.20+100") is ReasonKind.FIRST_LEASE
    news.follow(macs("aa"), frozenset())
    assert told(news) is ReasonKind.LEASES
    news.follow(frozenset(), frozenset())
    news.follow(macs("aa"), macs("aa"))
    assert told(news, aa="192.168.122.20+200") is ReasonKind.LEASES
    news.follow(frozenset(), frozenset())
    news.follow(macs("aa"), macs("aa"))
    assert told(news, aa="192.168.122.20+300") is ReasonKind.FIRST_LEASE


def test_a_lease_of_no_guest_is_news_once_an_inventory_that_began_before_it_finds_its_guest() -> None:
    news = LeaseNews(lambda: 0.0)
    news.follow(frozenset(), frozenset())
    assert told(news) is ReasonKind.LEASES
    news.inventory_begins()
    assert told(news, aa="192.168.122.20+100", bb="192.168.122.21+100") is None
    assert news.follow(macs("aa"), macs("aa")) == (("virbr0", ReasonKind.FIRST_LEASE),)
    # The next one sees it.
    news.inventory_begins()
    assert news.follow(macs("aa", "bb"), frozenset()) == ()
    assert told(news, aa="192.168.122.20+100", bb="192.168.122.21+100", cc="192.168.122.22+100") is None
    assert news.follow(macs("cc"), frozenset()) == (("virbr0", ReasonKind.LEASES),)


def test_leases_of_no_guest_that_have_gone_are_not_remembered() -> None:
    news = LeaseNews(lambda: 0.0)
    assert told(news) is ReasonKind.LEASES
    assert told(news, aa="192.168.122.20+100") is None
    assert told(news, bb="192.168.122.20+100") is None
    assert news.follow(macs("aa"), macs("aa")) == ()
