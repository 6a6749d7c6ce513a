"""Guests keep the network beside Docker, what libvirt refuses stays refused, and containers are no nearer."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import pytest

from tests.dockers_rules import BEGUN
from tests.host.conftest import HEAD, WEB4, Scene, entry, filled
from tests.lab import image
from tests.lab.host import CLIENT4, PUBLIC4, Host
from tests.lab.place import wait_until
from tests.lab.probe import Outcome
from tests.lab.release import LibvirtFirewall

WEB = filled(entry("web", "8000:80", "WEB4"))
KEY = f"{HEAD}keep_guests_online = true\n{WEB}"
CONTAINER = "172.17.0.2"
on_nftables = pytest.mark.on(LibvirtFirewall.NFTABLES)


@pytest.fixture
def beside(shared_scene: Scene) -> Iterator[Scene]:
    """The guests, a server outside, and a container on docker0, where nothing listens."""
    host = shared_scene.host
    with ExitStack() as at_end:
        at_end.callback(host.outside.serve("outside", "tcp", 99).stop)
        host.run("ip", "link", "add", "docker0", "type", "bridge")
        at_end.callback(host.run, "ip", "link", "del", "docker0")
        host.run("ip", "address", "add", "172.17.0.1/16", "dev", "docker0")
        host.run("ip", "link", "set", "docker0", "up")
        host.run("ip", "netns", "add", "container")
        at_end.callback(host.run, "ip", "netns", "del", "container")
        host.run("ip", "link", "add", "veth0", "type", "veth", "peer", "name", "eth0", "netns", "container")
        at_end.callback(host.run, "ip", "link", "del", "veth0")
        host.run("ip", "link", "set", "veth0", "master", "docker0", "up")
        for words in (f"address add {CONTAINER}/16 dev eth0", "link set eth0 up", "route add default via 172.17.0.1"):
            host.run("ip", "-netns", "container", *words.split())
        for network in ("192.168.122.0/24", "172.17.0.0/16"):
            host.outside.run(["ip", "route", "replace", network, "via", PUBLIC4])
            at_end.callback(host.outside.run, ["ip", "route", "del", network])
        yield shared_scene


@contextmanager
def dockers_rules(host: Host, program: str) -> Iterator[None]:
    """Have Docker's rules in a rule system, and take them away again."""
    before = host.run(f"{program}-save", "-t", "filter").stdout
    try:
        yield
    finally:
        without = "".join(f"{line}\n" for line in before.splitlines() if "kvm-portfwd" not in line)
        host.run(f"{program}-restore", stdin=without or "*filter\n:FORWARD ACCEPT [0:0]\nCOMMIT\n")


def begin(host: Host, program: str) -> None:
    host.run(f"{program}-restore", "--noflush", stdin=BEGUN)


def is_online(scene: Scene) -> bool:
    return scene.web.place.tcp(CLIENT4, 99, timeout=0.5).answered


def reaches_container(scene: Scene) -> bool:
    return scene.web.place.tcp(CONTAINER, 80, timeout=0.5).outcome is Outcome.REFUSED


def is_cut_off(scene: Scene) -> None:
    """Wait until a guest is, and see that `explain` says by whom, and what helps."""
    wait_until(lambda: not is_online(scene), "without the key, the guest is cut off")
    words = ("--from", "web", f"{CLIENT4}:99", "--json")
    report = json.loads(scene.host.portfwd("explain", *words, check=False).stdout)
    assert report["cause"] == "dockers-policy"
    assert "Docker" in report["sentence"]
    assert "keep_guests_online = true" in report["sentence"]


def forward_chain(host: Host, program: str) -> list[str]:
    return host.run(program, "-w", "-S", "FORWARD").stdout.splitlines()


def others(host: Host, program: str) -> list[str]:
    return [rule for rule in forward_chain(host, program) if "kvm-portfwd" not in rule]


def paths(host: Host, program: str) -> list[str]:
    return [rule for rule in forward_chain(host, program) if "kvm-portfwd" in rule and " -o " in rule]


@on_nftables
@pytest.mark.parametrize(
    ("program", "docker_first"), [("iptables-nft", True), ("iptables-nft", False), ("iptables-legacy", True)]
)
def test_guests_keep_the_network_and_nothing_else_opens(beside: Scene, program: str, *, docker_first: bool) -> None:
    host = beside.host
    wait_until(partial(is_online, beside), "the guest is online without Docker")
    assert reaches_container(beside)
    with dockers_rules(host, program):
        if docker_first:
            begin(host, program)
            wait_until(lambda: not is_online(beside), "Docker's policy cuts the guest off")
        daemon = beside.start(KEY)
        if not docker_first:
            begin(host, program)
        wait_until(lambda: len(paths(host, program)) > 1, "guests are let through")
        wait_until(partial(is_online, beside), "the guest is online beside Docker")
        wait_until(lambda: host.outside.fetch(f"http://{PUBLIC4}:8000/").answered, "the forward works")
        assert not host.outside.fetch(f"http://{WEB4}/", timeout=0.5).answered
        assert not reaches_container(beside)
        listed = others(host, program)
        assert forward_chain(host, program)[-len(paths(host, program)) :] == paths(host, program)

        daemon.reload_with(HEAD + WEB)
        is_cut_off(beside)
        assert not paths(host, program)

        daemon.reload_with(KEY)
        wait_until(partial(is_online, beside), "with it, it is online again")
        daemon.terminate()
        host.portfwd("flush")
        assert forward_chain(host, program) == others(host, program) == listed


@pytest.mark.on(LibvirtFirewall.IPTABLES)
@pytest.mark.parametrize("docker_first", [True, False])
def test_beside_libvirts_own_rules_in_iptables_there_are_none_of_ours(beside: Scene, *, docker_first: bool) -> None:
    host = beside.host
    with dockers_rules(host, "iptables-nft"):
        begin(host, "iptables-nft")
        if docker_first:
            host.libvirt.restart()
        beside.start(KEY)
        wait_until(lambda: host.outside.fetch(f"http://{PUBLIC4}:8000/").answered, "the forward works")
        wait_until(partial(is_online, beside), "libvirt's own rules let the guest out")
        assert not paths(host, "iptables-nft")
        assert not host.outside.fetch(f"http://{WEB4}/", timeout=0.5).answered


@contextmanager
def dockerd(host: Host) -> Iterator[None]:
    """Run Docker's own daemon, which takes docker0 as it is."""
    programs = image.docker()
    words = ["--data-root=/tmp/docker", "--exec-root=/run/docker", "--pidfile=/run/docker.pid", "--storage-driver=vfs"]
    docker = host.popen("env", f"PATH={programs}:/usr/sbin:/usr/bin:/sbin:/bin", f"{programs}/dockerd", *words)
    try:
        docker.wait_line("API listen on")
        yield
    finally:
        docker.stop()


def reach(scene: Scene) -> tuple[Outcome, Outcome]:
    """Tell how the container answers outside and a guest."""
    outside, guest = scene.host.outside, scene.web.place
    return outside.tcp(CONTAINER, 80, timeout=0.5).outcome, guest.tcp(CONTAINER, 80, timeout=0.5).outcome


def works(scene: Scene) -> None:
    wait_until(partial(is_online, scene), "the guest is online beside Docker")
    wait_until(lambda: scene.host.outside.fetch(f"http://{PUBLIC4}:8000/").answered, "the forward works")
    assert not scene.host.outside.fetch(f"http://{WEB4}/", timeout=0.5).answered


def forbid_forwarding(host: Host) -> None:
    """Have Docker set the policy, which it does where it turns forwarding on itself."""
    host.run("sysctl", "-w", "net.ipv4.ip_forward=0")


def policy(host: Host) -> str:
    return forward_chain(host, "iptables-nft")[0].removeprefix("-P FORWARD ")


@pytest.mark.on(LibvirtFirewall.NFTABLES, LibvirtFirewall.IPTABLES)
def test_beside_dockers_own_daemon_that_starts_before_libvirt(beside: Scene) -> None:
    host, apart = beside.host, beside.host.flavour.firewall is LibvirtFirewall.NFTABLES
    forbid_forwarding(host)
    with dockers_rules(host, "iptables-nft"), dockers_rules(host, "ip6tables-nft"):
        with dockerd(host):
            assert policy(host) == "DROP"
            host.libvirt.restart()
            wait_until(
                lambda: is_online(beside) is not apart, "libvirt's own rules are there, and do not suffice elsewhere"
            )
            alone = reach(beside)
            assert alone[0] is Outcome.TIMED_OUT
            daemon = beside.start(HEAD + WEB)
            if apart:
                is_cut_off(beside)
            daemon.reload_with(KEY)
            works(beside)
            assert bool(paths(host, "iptables-nft")) is apart
            assert reach(beside) == alone
        with dockerd(host):
            assert policy(host) == "DROP"
            works(beside)
            assert reach(beside) == alone


@pytest.mark.on(LibvirtFirewall.NFTABLES, LibvirtFirewall.IPTABLES)
def test_beside_dockers_own_daemon_that_starts_after_libvirt_and_us(beside: Scene) -> None:
    host, apart = beside.host, beside.host.flavour.firewall is LibvirtFirewall.NFTABLES
    with dockers_rules(host, "iptables-nft"), dockers_rules(host, "ip6tables-nft"):
        # We would turn forwarding on again.
        daemon = beside.start(KEY.replace("[daemon]", "[daemon]\nip_forward = false", 1))
        works(beside)
        with dockerd(host):
            # It finds forwarding turned on, and so leaves the policy as it is; its chains come all the same.
            assert policy(host) == "ACCEPT"
            assert any("DOCKER" in rule for rule in forward_chain(host, "iptables-nft"))
            works(beside)
        forbid_forwarding(host)
        with dockerd(host):
            assert policy(host) == "DROP"
            works(beside)
            together = reach(beside)
            if apart:
                daemon.reload_with(HEAD + WEB)
                is_cut_off(beside)
            daemon.terminate()
            host.portfwd("flush")
            assert reach(beside) == together
