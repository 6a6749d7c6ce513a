"""Everything that the daemon can do, it can do in the unit's sandbox: on nftables, and on iptables-legacy."""

import json
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from tests.host.conftest import Conversation
from tests.lab.computer import CLIENT4, CLIENT6, PUBLIC4, PUBLIC6
from tests.lab.etcd import Etcd, certificates
from tests.lab.machine import UNIT, Machine
from tests.lab.place import wait_until
from tests.lab.release import LibvirtFirewall
from tests.system.sandbox import (
    CONFIG,
    EVERYTHING,
    HEAD,
    MAIL4,
    MAIL6,
    METRICS_PORT,
    ROUTED4,
    ROUTED6,
    TEXTFILE,
    WEB4,
    Sandbox,
    guests_on,
)

# What does not depend on where the rules are is shown with each systemd. Guest agents are asked through libvirt alone,
# which is reached in any case; tests/host asks one.
each_release = pytest.mark.on(LibvirtFirewall.IPTABLES, LibvirtFirewall.NFTABLES)

OWN_NETWORK = "192.168.122.1"
PRIVATE = "10.9.9.2"


@pytest.fixture(scope="module")
def sandbox(module_machine: Machine, package: Path) -> Iterator[Sandbox]:
    """A machine with everything configured and in force."""
    machine = module_machine
    machine.run("mkdir", "-p", str(Path(TEXTFILE).parent))
    # Guests reach themselves through the host only in hairpin mode then.
    for family in ("", "6"):
        machine.run("sysctl", "-w", f"net.bridge.bridge-nf-call-ip{family}tables=1")
    machine.install(package)
    with guests_on(machine) as made:
        machine.write(CONFIG, EVERYTHING)
        machine.systemctl("restart", UNIT)
        yield made


def url(address: str, port: int, path: str = "") -> str:
    host = f"[{address}]" if ip_address(address).version == 6 else address
    return f"http://{host}:{port}/{path}"


def test_forwards_lead_to_guests_and_the_host_forwards_packets(sandbox: Sandbox) -> None:
    outside = sandbox.machine.outside
    server = sandbox.web.serve_udp(53)
    sandbox.answers(lambda: outside.fetch(url(PUBLIC4, 8080)), f"web {CLIENT4}")
    sandbox.answers(lambda: outside.fetch(url(PUBLIC6, 8080)), f"web {CLIENT6}")
    sandbox.answers(lambda: outside.udp(PUBLIC4, 5300), f"web {CLIENT4}")
    server.stop()
    # libvirt has turned it on already, for its networks.
    for setting in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"):
        sandbox.machine.run("sysctl", "-w", f"{setting}=0")
        sandbox.machine.run("kvm-portfwd", "reload")
        sandbox.says(f"restored {setting} = 1")
    sandbox.answers(lambda: outside.fetch(url(PUBLIC6, 8080)), f"web {CLIENT6}")


@each_release
def test_guests_reach_themselves_through_the_host(sandbox: Sandbox) -> None:
    sandbox.answers(lambda: sandbox.web.place.fetch(url(PUBLIC4, 8080)), f"web {OWN_NETWORK}")
    sandbox.answers(lambda: sandbox.mail.place.fetch(url(PUBLIC4, 8080)), f"web {MAIL4}")


@each_release
def test_forwards_answer_on_127_0_0_1(sandbox: Sandbox) -> None:
    sandbox.answers(lambda: sandbox.machine.place.fetch(url("127.0.0.1", 8080)), f"web {OWN_NETWORK}")


@each_release
def test_a_public_address_is_assigned_and_the_neighbours_are_told(sandbox: Sandbox) -> None:
    outside, strange = sandbox.machine.outside, "02:00:00:00:00:99"
    for address in (MAIL4, MAIL6):
        outside.run(["ip", "neighbour", "replace", address, "lladdr", strange, "dev", "eth0", "nud", "reachable"])
        sandbox.machine.run("ip", "address", "flush", "dev", "eth0", "to", address)
    sandbox.answers(lambda: outside.fetch(url(MAIL4, 80)), f"mail {CLIENT4}")
    sandbox.answers(lambda: outside.fetch(url(MAIL6, 80)), f"mail {CLIENT6}")
    sandbox.says(f"restored mail: all of {MAIL4}")


@each_release
def test_routed_addresses_are_answered_for_on_the_link_outside(sandbox: Sandbox) -> None:
    outside = sandbox.machine.outside
    outside.run(["ip", "neighbour", "flush", "dev", "eth0"])
    sandbox.answers(lambda: outside.fetch(url(ROUTED4, 80)), f"routed {CLIENT4}")

    # A whole prefix is more than the kernel's own proxies can answer for.
    def is_known() -> bool:
        outside.fetch(url(ROUTED6, 80), timeout=0.2)
        return "lladdr" in outside.run(["ip", "neighbour", "show", ROUTED6, "dev", "eth0"]).stdout

    wait_until(is_known, f"somebody answers for {ROUTED6}")


def test_what_was_wiped_is_put_back(sandbox: Sandbox) -> None:
    machine = sandbox.machine
    if machine.flavour.firewall is LibvirtFirewall.LEGACY:
        machine.run("iptables-legacy", "-w", "-t", "nat", "-F")
        sandbox.says("restored web: tcp *:8080")
    else:
        machine.run("nft", "delete", "table", "ip", "kvm_portfwd")
        # The kernel names who it was; the unit may not look into /proc of others.
        sandbox.says("changed by nft, pid ")
    sandbox.answers(lambda: machine.outside.fetch(url(PUBLIC4, 8080)), f"web {CLIENT4}")


@each_release
def test_a_lease_makes_a_forward_live_and_the_files_of_the_dhcp_server_are_watched(sandbox: Sandbox) -> None:
    machine = sandbox.machine
    sandbox.leased.take_lease()
    sandbox.answers(lambda: machine.outside.fetch(url(PUBLIC4, 8081)), f"leased {CLIENT4}")
    # The guest's first packet shows its address as well, so the watch is looked for itself: proc_pid_fdinfo(5).
    directory = int(machine.run("stat", "--format=%i", "/var/lib/libvirt/dnsmasq").stdout)
    # Other descriptors come and go meanwhile.
    read = ["sh", "-c", 'cat /proc/"$1"/fdinfo/*', "sh", machine.property("MainPID")]
    wait_until(lambda: f" ino:{directory:x} " in machine.run(*read, check=False).stdout, "the directory is watched")


@each_release
def test_a_reload_ends_the_connections_of_what_went_and_no_others(sandbox: Sandbox) -> None:
    server = sandbox.web.serve_tcp(7000)
    other = sandbox.mail.serve_tcp(7001)
    ended, kept = (Conversation(sandbox.machine.outside, *where) for where in ((PUBLIC4, 7000), (MAIL4, 7001)))
    sandbox.configure(EVERYTHING.replace(', "7000"', ""))
    wait_until(lambda: not ended.goes_on(), "the connection ends")
    assert kept.goes_on()
    sandbox.configure(EVERYTHING)
    ended.close()
    kept.close()
    server.stop()
    other.stop()


@each_release
def test_members_of_the_group_may_ask_and_nobody_else(sandbox: Sandbox) -> None:
    def ask(group: str) -> str:
        words = ["setpriv", "--reuid=nobody", "--regid=nogroup", f"--groups={group}", "kvm-portfwd", "status"]
        return sandbox.machine.run(*words, check=False).stderr

    wait_until(lambda: ask("libvirt") == "", "a member may ask")
    assert "is not for this user" in ask("nogroup")


@each_release
def test_explain_walks_through_the_host_from_outside_the_unit(sandbox: Sandbox) -> None:
    told = sandbox.machine.run("kvm-portfwd", "explain", f"{PUBLIC4}:8080", check=False)
    assert (told.returncode, told.stderr) == (0, "")
    assert f"{WEB4}:80" in told.stdout


@each_release
def test_a_service_on_a_forwarded_port_is_named(sandbox: Sandbox) -> None:
    serve = Path(__file__).parents[1] / "lab/serve.py"
    words = ["systemd-run", "--quiet", "--unit=rival", "/usr/bin/python3", str(serve), "rival", "tcp", "8080"]
    # With localhost = true, the port is taken on 127.0.0.1, and no other process gets it on every address.
    sandbox.configure(EVERYTHING.replace("localhost = true\n", ""))
    sandbox.machine.run(*words)
    try:
        wait_until(lambda: ":8080 " in sandbox.machine.run("ss", "-Hltn").stdout, "it listens")
        sandbox.machine.run("kvm-portfwd", "reload")
        sandbox.says("port 8080/tcp: rival.service")
    finally:
        sandbox.machine.systemctl("stop", "rival.service")
        sandbox.configure(EVERYTHING)


@each_release
def test_metrics_are_in_the_collectors_directory_and_for_this_host(sandbox: Sandbox) -> None:
    metric = "kvm_portfwd_build_info"
    wait_until(lambda: metric in sandbox.machine.run("cat", TEXTFILE, check=False).stdout, "the file is there")
    local = sandbox.machine.place
    wait_until(lambda: metric in local.fetch(url("127.0.0.1", METRICS_PORT, "metrics")).text, "metrics are served")


@each_release
def test_what_metrics_need_beyond_that_is_named_and_a_drop_in_gives_it(sandbox: Sandbox) -> None:
    machine, directory = sandbox.machine, "/srv/metrics"
    page = url(PUBLIC4, METRICS_PORT, "metrics")
    machine.run("mkdir", "-p", directory)
    assert sandbox.web.place.fetch(url(OWN_NETWORK, METRICS_PORT, "metrics")).answered, "a private network"
    assert not machine.outside.fetch(page, timeout=0.5).answered, "everybody"
    sandbox.says(f"metrics are served on 0.0.0.0:{METRICS_PORT}, to the addresses in IPAddressAllow= of the service")
    sandbox.configure(EVERYTHING.replace(str(Path(TEXTFILE).parent), directory))
    sandbox.says(f'once "systemctl edit kvm-portfwd" adds "[Service]" and "ReadWritePaths=-{directory}"')
    with sandbox.drop_in(f"ReadWritePaths=-{directory}", "IPAddressAllow=198.51.100.0/24"):
        wait_until(lambda: machine.outside.fetch(page).answered, "the collector is let in")
        file = f"{directory}/{Path(TEXTFILE).name}"
        wait_until(lambda: machine.run("test", "-s", file, check=False).returncode == 0, "the file is there")
        machine.write(CONFIG, EVERYTHING)


@pytest.fixture
def etcd(sandbox: Sandbox, tmp_path: Path) -> Iterator[Etcd]:
    """One member outside, with TLS and a user, at an address that is none of a private network, and at one that is."""
    machine, outside = sandbox.machine, sandbox.machine.outside
    for place, address in ((machine.place, "10.9.9.1/24"), (outside, f"{PRIVATE}/24")):
        place.run(["ip", "address", "add", address, "dev", "eth0"])
    tls = certificates(tmp_path, CLIENT4, PRIVATE)
    both = f"--listen-client-urls=https://{CLIENT4}:2379,https://{PRIVATE}:2379"
    member = Etcd("one", CLIENT4, ("nsenter", f"--net={outside.namespace}"), tls=tls, options=(both,))
    member.start()
    try:
        member.wait_answers()
        member.permit("host", "secret", "/portfwd/v1/")
        machine.write("/etc/ssl/etcd-ca.pem", tls.ca.read_text())
        machine.write("/etc/portfwd.etcd-password", "secret\n")
        machine.run("chmod", "0600", "/etc/portfwd.etcd-password")
        yield member
    finally:
        member.remove()
        machine.write(CONFIG, EVERYTHING)
        for place, address in ((machine.place, "10.9.9.1/24"), (outside, f"{PRIVATE}/24")):
            place.run(["ip", "address", "delete", address, "dev", "eth0"])
        machine.systemctl("restart", UNIT)


@each_release
def test_the_table_of_a_fleet_is_followed_and_kept(sandbox: Sandbox, etcd: Etcd) -> None:
    machine = sandbox.machine
    settings = 'ca = "/etc/ssl/etcd-ca.pem"\nuser = "host"\npassword_file = "/etc/portfwd.etcd-password"\n'
    config = f'{HEAD}[fleet]\netcd = "https://{PRIVATE}:2379"\n{settings}'
    sandbox.configure(config)
    table = f'[[nat]]\ndomain = "mail"\npublic = "{MAIL4}"\naddress = "192.168.122.25"\nassign = "eth0"\n'
    machine.run("kvm-portfwd", "fleet", "put", "shop", "-", stdin=table)
    sandbox.answers(lambda: machine.outside.fetch(url(MAIL4, 80)), f"mail {CLIENT4}")
    # Others are not for the service to speak to, until the drop-in of docs/fleet.md says so.
    sandbox.configure(config.replace(PRIVATE, CLIENT4))
    sandbox.says(f"etcd: https://{CLIENT4}:2379: ")
    with sandbox.drop_in(f"IPAddressAllow={CLIENT4}/32"):
        wait_until(lambda: "1 of 1 answer" in machine.run("kvm-portfwd", "status").stdout, "the member answers")
        sandbox.answers(lambda: machine.outside.fetch(url(MAIL4, 80)), f"mail {CLIENT4}")
        etcd.stop()
        machine.systemctl("restart", UNIT)
        told = json.loads(machine.run("kvm-portfwd", "status", "--json", check=False).stdout)
        assert [row["origin"] for row in told["openings"]] == ["etcd:shop:3"], "the table that is kept"
