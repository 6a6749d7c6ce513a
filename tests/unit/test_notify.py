"""What systemd gets: everything in order, nothing twice, and never at the price of waiting for it."""

import asyncio
import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from fwdaemon.audit.journal import ARREARS
from fwdaemon.core.types import Job
from fwdaemon.status.notify import Notifier, Pulse, Watchdog
from tests.lab.place import wait_until


class Systemd:
    """The end of the notification socket that systemd has."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(address)

    def told(self) -> list[str]:
        """Everything sent since the last time."""
        found = []
        while (message := self._read()) is not None:
            found.append(message)
        return found

    def _read(self) -> str | None:
        try:
            return self._socket.recv(65536).decode()
        except BlockingIOError:
            return None

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "40000"}


@pytest.fixture
def systemd(environment: dict[str, str]) -> Iterator[Systemd]:
    listening = Systemd(environment["NOTIFY_SOCKET"])
    yield listening
    listening.close()


def fill(address: str) -> None:
    """Leave messages until the socket takes no more."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
        while True:
            try:
                sender.sendto(b"FILLED=1", address)
            except BlockingIOError:
                return


def test_without_systemd_nothing_happens() -> None:
    notifier = Notifier({})
    notifier.ready()
    notifier.status("1 forward")
    notifier.close()


def test_every_message_is_what_systemd_reads(systemd: Systemd, environment: dict[str, str]) -> None:
    notifier = Notifier(environment)
    notifier.reloading()
    notifier.status("1 forward")
    notifier.ready()
    notifier.alive()
    notifier.stopping()
    notifier.close()
    reloading, *others = systemd.told()
    assert reloading.startswith("RELOADING=1\nMONOTONIC_USEC=")
    assert int(reloading.rpartition("=")[2]) > 0
    assert others == ["STATUS=1 forward", "READY=1", "WATCHDOG=1", "STOPPING=1"]


def test_an_abstract_socket_is_found() -> None:
    name = f"kvm-portfwd-test-{os.getpid()}"
    listening = Systemd(f"\0{name}")
    notifier = Notifier({"NOTIFY_SOCKET": f"@{name}"})
    notifier.ready()
    assert listening.told() == ["READY=1"]
    notifier.close()
    listening.close()


def test_the_same_status_is_told_once(systemd: Systemd, environment: dict[str, str]) -> None:
    notifier = Notifier(environment)
    for text in ("1 forward", "1 forward", "2 forwards", "1 forward"):
        notifier.status(text)
    notifier.close()
    assert systemd.told() == ["STATUS=1 forward", "STATUS=2 forwards", "STATUS=1 forward"]


def test_a_full_socket_holds_up_nobody_and_nothing_is_lost(systemd: Systemd, environment: dict[str, str]) -> None:
    async def scene() -> list[str]:
        notifier, told = Notifier(environment), list[str]()
        fill(environment["NOTIFY_SOCKET"])
        notifier.reloading()
        notifier.status("1 forward")
        notifier.status("2 forwards")
        notifier.ready()
        notifier.alive()
        assert Job.SYSTEMD in {late.job for late in ARREARS.late(0.0)}, "the status shows that it waits"
        while "READY=1" not in told:
            told += [message for message in systemd.told() if message != "FILLED=1"]
            await asyncio.sleep(0.01)
        assert Job.SYSTEMD not in {late.job for late in ARREARS.late(0.0)}
        notifier.close()
        return told

    reloading, *others = asyncio.run(asyncio.wait_for(scene(), 10))
    assert reloading.startswith("RELOADING=1")
    assert others == ["STATUS=2 forwards", "READY=1"], "an outdated status, and a sign of life, are not kept"


def test_the_watchdog_is_fed_where_no_descriptor_is_left(systemd: Systemd, environment: dict[str, str]) -> None:
    notifier = Notifier(environment)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        notifier.alive()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert systemd.told() == ["WATCHDOG=1"]
    notifier.close()


def test_a_systemd_that_has_gone_is_no_error(systemd: Systemd, environment: dict[str, str]) -> None:
    systemd.close()
    notifier = Notifier(environment)
    notifier.ready()
    notifier.close()


def test_the_watchdog_is_fed_again_and_again(systemd: Systemd, environment: dict[str, str]) -> None:
    notifier = Notifier(environment)
    watchdog = Watchdog(notifier, environment)
    assert watchdog.period == pytest.approx(0.01)
    for _ in range(2):
        wait_until(lambda: _fed(watchdog, systemd), "the watchdog is fed")
    notifier.close()


def test_the_watchdog_is_fed_no_more_often_than_it_needs(systemd: Systemd, environment: dict[str, str]) -> None:
    notifier = Notifier(environment)
    watchdog = Watchdog(notifier, {"WATCHDOG_USEC": "60000000"})
    for _ in range(1000):
        watchdog.feed()
    assert systemd.told() == []
    notifier.close()


def test_what_hangs_starves_the_watchdog_and_is_named(
    systemd: Systemd, environment: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    notifier = Notifier(environment)
    watchdog = Watchdog(notifier, environment)
    with watchdog.bounded("a comparison with the kernel"):
        wait_until(lambda: not _fed(watchdog, systemd) and bool(caplog.messages), "it takes too long")
        for _ in range(1000):
            watchdog.feed()
        assert systemd.told() == []
    assert caplog.messages == ["a comparison with the kernel hangs: systemd will end the daemon and start it again"]
    wait_until(lambda: _fed(watchdog, systemd), "it has ended after all")
    notifier.close()


@pytest.mark.parametrize("watched", [{}, {"WATCHDOG_USEC": "40000", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "x"}])
def test_nobody_is_fed_who_does_not_watch_us(
    systemd: Systemd, environment: dict[str, str], watched: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    notifier = Notifier(environment)
    watchdog = Watchdog(notifier, watched)
    with watchdog.bounded("anything"):
        for _ in range(1000):
            watchdog.feed()
    assert (systemd.told(), caplog.messages, watchdog.period) == ([], [], float("inf"))
    notifier.close()


def test_the_pulse_tells_what_is_new_and_that_we_are_alive(
    systemd: Systemd, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    async def scene() -> list[str]:
        status, told = "1 forward", list[str]()
        pulse = Pulse(lambda: status)
        pulse.begin()
        while "WATCHDOG=1" not in told:
            await asyncio.sleep(0.01)
            told += systemd.told()
        status = "2 forwards"
        pulse.ready()
        pulse.end()
        return told + systemd.told()

    told = asyncio.run(asyncio.wait_for(scene(), 10))
    assert [message for message in told if message != "WATCHDOG=1"] == [
        "STATUS=1 forward",
        "STATUS=2 forwards",
        "READY=1",
    ]


def test_after_something_was_done_the_status_is_told_before_the_next_pulse(
    systemd: Systemd, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", environment["NOTIFY_SOCKET"])

    async def scene() -> list[str]:
        status, told = "1 forward", list[str]()
        pulse = Pulse(lambda: status, period=1000.0, soon=0.01)
        pulse.begin()
        status = "2 forwards"
        pulse.soon()
        pulse.soon()
        while "STATUS=2 forwards" not in told:
            await asyncio.sleep(0.01)
            told += systemd.told()
        pulse.end()
        return told

    assert asyncio.run(asyncio.wait_for(scene(), 10)) == ["STATUS=1 forward", "STATUS=2 forwards"]


def _fed(watchdog: Watchdog, systemd: Systemd) -> bool:
    watchdog.feed()
    return "WATCHDOG=1" in systemd.told()
