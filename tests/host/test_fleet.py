"""Addresses that follow their guest from host to host, by claims in etcd, and by BGP."""

import json
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.host.conftest import Conversation, rules_have_no_part
from tests.host.moving import STREAMS_PATIENCE, VM4, VM6, Download, Move, guest_on_the_first, two_hosts_alike
from tests.lab import bird, frr
from tests.lab.domain import Link
from tests.lab.etcd import Etcd, certificates, running
from tests.lab.host import CLIENT4, PUBLIC4, PUBLIC6, PUBLIC6_SECOND, SOURCE, Host
from tests.lab.lxc import LxcGuest
from tests.lab.pair import SECOND4, SECOND6, Holders, Pair
from tests.lab.place import Line, Process, wait_until
from tests.lab.qemu import ECHO_PORT
from tests.lab.release import Flavour

pytestmark = rules_have_no_part

QEMU = '[daemon]\nlibvirt = ["qemu:///system"]\n'
# Of the files, announced as routes; and of the table, with claims.
ROUTED = ("198.51.100.65", "2001:db8:64::65")
CLAIMED = ("198.51.100.8", "2001:db8::88")
EXAMPLES = SOURCE / "etc/examples"
LXC = '[daemon]\nlibvirt = ["lxc:///system"]\n'
# Of guests that are started again and again, on the host with BIRD and on the one with FRR.
STARTED = ("198.51.100.66", "198.51.100.67")
SHOP4 = "192.168.122.60"
# What is promised. Of twenty starts that docs/fleet.md has of each, one took longer, with FRR: of so many here, one has
# to be as quick.
AT_ONCE_S, STARTS = 0.2, 5


@pytest.fixture(scope="module")
def pair(lab: None, flavour: Flavour) -> Iterator[Pair]:
    del lab
    with two_hosts_alike(flavour) as pair:
        yield pair


def entries(public: tuple[str, str], interface: str) -> str:
    nats = zip(public, (VM4, VM6), strict=True)
    return "".join(
        f'[[nat]]\ndomain = "vm"\npublic = "{address}"\naddress = "{guest}"\nassign = "{interface}"\n'
        for address, guest in nats
    )


def answers(move: Move, address: str) -> bool:
    url = f"http://[{address}]/" if ":" in address else f"http://{address}/"
    return move.pair.first.outside.fetch(url).text.startswith("vm ")


def talk(move: Move, at_end: ExitStack, address: str) -> Conversation:
    conversation = Conversation(move.pair.first.outside, address, ECHO_PORT, STREAMS_PATIENCE)
    at_end.callback(conversation.close)
    return conversation


def load(move: Move, at_end: ExitStack, address: str) -> Download:
    download = Download(move.pair.first, address)
    at_end.callback(download.close)
    download.goes_on()
    return download


@pytest.fixture
def routers(pair: Pair, tmp_path: Path) -> Iterator[list[Process]]:
    """BIRD outside and on the first host, FRR on the second; gives what reports each change of the routes outside."""
    outside = pair.first.outside
    router = bird.router(CLIENT4, PUBLIC4, SECOND4, PUBLIC6, SECOND6)
    of_second = (EXAMPLES / "frr.conf").read_text().replace("router-id 198.51.100.1", f"router-id {SECOND4}")
    with ExitStack() as at_end:
        at_end.enter_context(bird.running(outside.namespace, router, tmp_path / "router"))
        of_first = (EXAMPLES / "bird.conf").read_text()
        at_end.enter_context(bird.running(pair.first.place.namespace, of_first, tmp_path / "first"))
        at_end.enter_context(frr.running(pair.second.place.namespace, of_second))
        monitors = [outside.popen(["ip", family, "monitor", "route"]) for family in ("-4", "-6")]
        for monitor in monitors:
            at_end.callback(monitor.stop)
        yield monitors


def ways(monitor: Process, address: str) -> list[str]:
    """By which hosts the way to an address led, one after the other, or that it was gone."""
    told = [line.text for line in changes(monitor, address)]
    hosts = dict.fromkeys((PUBLIC4, PUBLIC6, PUBLIC6_SECOND), "first") | dict.fromkeys((SECOND4, SECOND6), "second")
    return ["gone" if text.startswith("Deleted") else hosts[text.split(" via ")[1].split()[0]] for text in told]


def announced(routers: list[Process], *last: str, at_once: bool = False) -> None:
    """Wait until these were the last; with `at_once`, one host may announce it ahead of the other's withdrawal."""
    ends = [[*last], [way for way in last if way != "gone"]] if at_once else [[*last]]

    def are() -> bool:
        found = [ways(monitor, address) for monitor, address in zip(routers, ROUTED, strict=True)]
        return all(any(each[-len(end) :] == end for end in ends) for each in found)

    wait_until(are, lambda: "".join(monitor.text() for monitor in routers))


@pytest.fixture
def etcd(pair: Pair, tmp_path: Path) -> Iterator[Etcd]:
    """One member of it, outside, and what each host needs to speak to it."""
    tls, outside = certificates(tmp_path, CLIENT4), pair.first.outside
    for host in (pair.first, pair.second):
        host.write("/etc/etcd-ca.pem", tls.ca.read_text())
    with running(Etcd("one", CLIENT4, ("nsenter", f"--net={outside.namespace}"), tls=tls)) as (member,):
        yield member


def config(etcd: Etcd) -> str:
    return f'{QEMU}[fleet]\netcd = "{etcd.url}"\nca = "/etc/etcd-ca.pem"\n'


def told(host: Host, *words: str) -> Any:
    return json.loads(host.portfwd(*words, "--json", check=False).stdout)


def test_routes_and_addresses_of_the_table_follow_the_guest(pair: Pair, routers: list[Process], etcd: Etcd) -> None:
    """Of one guest, since that costs more than all that is looked at.

    Through the addresses that it opens connections from, it sends all the while.
    """
    with guest_on_the_first(pair, config(etcd) + entries(ROUTED, "lo")) as move, ExitStack() as at_end:
        routes_follow(move, routers)
        done = pair.second.portfwd("fleet", "put", "shop", "-", stdin=entries(CLAIMED, "eth0"))
        assert done.stdout.startswith("shop: written, revision ")
        for address in (*ROUTED, *CLAIMED):
            wait_until(partial(answers, move, address), f"{address} answers")
        seen(move)
        talks = [talk(move, at_end, address) for address in (*ROUTED, *CLAIMED)]
        loads = [load(move, at_end, address) for address in CLAIMED]
        with Holders(pair, *ROUTED, *CLAIMED) as holders:
            assert move.migrate(pair.first).ended() == ""
            for each in loads:
                each.goes_on()
            assert all(each.goes_on() for each in talks)
            wait_until(lambda: holders_of(pair.first) == {"second"}, "the second host has the claims")
        assert not holders.both
        assert set(map(tuple, holders.seen.values())) == {(1, 2)}
        announced(routers, "first", "gone", "second")
        stopped(move)
        move.guest(pair.second).remove()
        announced(routers, "first", "gone", "second", "gone")


def routes_follow(move: Move, routers: list[Process]) -> None:
    """There and back: BIRD withdraws a route before FRR announces it, and FRR before BIRD unless it happens to be slow.

    That takes it a moment of its own (docs/fleet.md), and a migration no longer than that.
    """
    with ExitStack() as at_end, Holders(move.pair, *ROUTED) as holders:
        for address in ROUTED:
            wait_until(partial(answers, move, address), f"{address} answers")
        loads = [load(move, at_end, address) for address in ROUTED]
        for start in (move.pair.first, move.pair.second):
            assert move.migrate(start).ended() == ""
            for each in loads:
                each.goes_on()
            if start is move.pair.first:
                announced(routers, "first", "gone", "second")
        announced(routers, "second", "gone", "first", at_once=True)
    assert not holders.both
    assert set(map(tuple, holders.seen.values())) == {(1, 2, 1)}


def holders_of(host: Host) -> set[str]:
    return {claim["host"] for claim in told(host, "fleet", "status")["claims"]}


def seen(move: Move) -> None:
    """The status says how it is with etcd, which host serves what, and where it is written."""
    host = move.pair.first
    status = told(host, "status")
    assert {"etcd:shop:3", "etcd:shop:8"} <= {row["origin"] for row in status["openings"]}
    assert (status["fleet"]["answering"], status["fleet"]["members"]) == (1, 1)
    assert sorted(status["fleet"]["held"]) == sorted(CLAIMED)
    assert "etcd           1 of 1 answer, revision " in host.portfwd("status").stdout
    wait_until(lambda: len(told(host, "fleet", "status")["hosts"]) == 2, "both hosts are known")
    answer = told(host, "fleet", "status")
    assert [each["serves"] for each in answer["hosts"] if each["serves"]] == [{"shop": ["vm"]}]
    assert {each["behind"] for each in answer["hosts"]} == {False}
    waiting = {row["reason"] for row in told(move.pair.second, "status")["openings"]}
    assert all("it was handed over to another host" in reason for reason in waiting), waiting
    explained = host.portfwd("explain", f"{CLAIMED[0]}:80", check=False).stdout
    assert "etcd:shop:3" in explained


def stopped(move: Move) -> None:
    """The kernel takes the addresses away from a host whose daemon stands still; it puts them back when it goes on."""
    host = move.pair.second
    assert set(CLAIMED) & held(host) == set(CLAIMED)
    move.daemon(host).process.send(signal.SIGSTOP)
    wait_until(lambda: not held(host) & set(CLAIMED), "the kernel lets go of them")
    move.daemon(host).process.send(signal.SIGCONT)
    for address in CLAIMED:
        wait_until(partial(answers, move, address), f"{address} answers again")


def held(host: Host) -> set[str]:
    return {word.partition("/")[0] for word in host.run("ip", "address").stdout.split()}


def test_a_route_is_announced_as_soon_as_its_guest_starts(pair: Pair, routers: list[Process]) -> None:
    with ExitStack() as at_end:
        for host, address in zip((pair.first, pair.second), STARTED, strict=True):
            guest = shop(at_end, host, address)
            delays = [start_again(routers[0], guest, address)]
            while min(delays) >= AT_ONCE_S:
                assert len(delays) < STARTS, delays
                delays.append(start_again(routers[0], guest, address))


def shop(at_end: ExitStack, host: Host, address: str) -> LxcGuest:
    """Give a guest that runs, with this public address."""
    guest = LxcGuest(host, "shop", Link("default", (f"{SHOP4}/24",)))
    at_end.callback(guest.remove)
    entry = f'[[nat]]\ndomain = "shop"\npublic = "{address}"\naddress = "{SHOP4}"\nassign = "lo"\n'
    daemon = host.daemon(LXC + entry, forked=True)
    at_end.callback(host.portfwd, "flush")
    at_end.callback(daemon.terminate)
    return guest.start()


def start_again(monitor: Process, guest: LxcGuest, address: str) -> float:
    """Stop a guest, and give the seconds from the return of its start until the router's kernel has its route again."""
    wait_until(lambda: is_routed(monitor, address), monitor.text)
    guest.stop()
    wait_until(lambda: not is_routed(monitor, address), monitor.text)
    with guest.domain() as domain:
        domain.create()
        started = time.monotonic()
    wait_until(lambda: is_routed(monitor, address), monitor.text)
    return max(0.0, changes(monitor, address)[-1].time - started)


def is_routed(monitor: Process, address: str) -> bool:
    last = changes(monitor, address)[-1:]
    return bool(last) and not last[0].text.startswith("Deleted")


def changes(monitor: Process, address: str) -> list[Line]:
    return [line for line in monitor.lines() if f"{address} " in line.text]
