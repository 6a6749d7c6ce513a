"""The service beside other people's firewalls: firewalld, ufw, Docker's rules, and libvirt on any of its own."""

import json
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import pytest

from tests.lab.computer import CLIENT4, CLIENT4_SECOND, PUBLIC4, PUBLIC6
from tests.lab.domain import Link
from tests.lab.fail2ban import are_aged
from tests.lab.lxc import LxcGuest
from tests.lab.machine import UNIT, Machine
from tests.lab.place import wait_until
from tests.lab.probe import Answer, Outcome
from tests.lab.release import DEBIAN13_NFTABLES, LibvirtFirewall
from tests.system.sandbox import CONFIG, HEAD, PREFIX4, ROUTED4, WEB, WEB4, Sandbox

pytestmark = pytest.mark.on(LibvirtFirewall.IPTABLES, LibvirtFirewall.NFTABLES)

PAGES = (f"http://{PUBLIC4}:8080/", f"http://[{PUBLIC6}]:8080/")
# On a network of libvirt's mode `route`, which has firewalld's zone `libvirt-routed`. `public` is in `libvirt`.
APART4, PREFIX_APART4 = "203.0.113.74", "203.0.113.72/29"
ROUTES = f"""{WEB}
[[route]]
network = "public"
addresses = ["{PREFIX4}"]
proxy = "eth0"

[[route]]
network = "apart"
addresses = ["{PREFIX_APART4}"]
proxy = "eth0"
"""
FIREWALLD = "/etc/firewalld/firewalld.conf"
GATE = 'gates = ["inet firewalld filter_FORWARD"]\n'

# A service of the guest at which every login fails, and its log.
LOG = "/var/log/logins.log"
LOGINS = f"""
import socket, time
server = socket.create_server(("", 2222))
log = open("{LOG}", "a", buffering=1)
print("ready", flush=True)
while True:
    connection, peer = server.accept()
    with connection:
        log.write(time.strftime("%Y-%m-%d %H:%M:%S") + f" login failed from {{peer[0]}}\\n")
        connection.sendall(b"no")
"""
BANNING = f"""{HEAD}deny = ["set:banned"]
{WEB}
[[forward]]
domain = "web"
address = "{WEB4}"
ports = ["2222"]

[[set]]
name = "banned"
external = true
"""
EXAMPLES = "/usr/share/doc/kvm-portfwd/examples"
JAIL = f"""
[sshd]
enabled = false

[guest]
enabled = true
filter = guest
backend = polling
logpath = {LOG}
maxretry = 3
bantime = 1h
action = kvm-portfwd[set=banned]
"""
FAIL2BAN = {
    "/etc/fail2ban/filter.d/guest.conf": "[Definition]\nfailregex = login failed from <ADDR>$\n",
    "/etc/fail2ban/jail.local": JAIL,
    # As docs/service.md asks for; and what a test kills stays away.
    "/etc/systemd/system/fail2ban.service.d/test.conf": f"[Unit]\nAfter={UNIT}\n[Service]\nRestart=no\n",
}

# What dockerd 28 writes for a container that publishes port 9000, as iptables-save prints it.
DOCKER = """*filter
:FORWARD DROP [0:0]
:DOCKER - [0:0]
:DOCKER-BRIDGE - [0:0]
:DOCKER-CT - [0:0]
:DOCKER-FORWARD - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-ISOLATION-STAGE-2 - [0:0]
:DOCKER-USER - [0:0]
-I FORWARD 1 -j DOCKER-USER
-I FORWARD 2 -j DOCKER-FORWARD
-A DOCKER -d 172.17.0.2/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 80 -j ACCEPT
-A DOCKER ! -i docker0 -o docker0 -j DROP
-A DOCKER-BRIDGE -o docker0 -j DOCKER
-A DOCKER-CT -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A DOCKER-FORWARD -j DOCKER-CT
-A DOCKER-FORWARD -j DOCKER-ISOLATION-STAGE-1
-A DOCKER-FORWARD -j DOCKER-BRIDGE
-A DOCKER-FORWARD -i docker0 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
COMMIT
*nat
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 9000 -j DNAT --to-destination 192.168.122.10:80
COMMIT
"""


def answers_everywhere(service: Sandbox) -> None:
    """Wait until the forwards of `web` answer in both families."""
    for page in PAGES:
        wait_until(partial(_is_answered, service, page), page)


def _is_answered(service: Sandbox, page: str) -> bool:
    return service.machine.outside.fetch(page).answered


def routed(service: Sandbox, address: str, guest: str) -> None:
    """Wait until a routed address is that guest."""
    service.answers(lambda: service.machine.outside.fetch(f"http://{address}/"), f"{guest} {CLIENT4}")


@contextmanager
def apart(machine: Machine) -> Iterator[None]:
    """A network of mode `route`, with a guest that has a routed address."""
    machine.libvirt.define_network("apart", "192.168.140.0/24", mode="route")
    guest = LxcGuest(machine, "apart", Link("apart", ("192.168.140.10/24",)))
    try:
        guest.start()
        guest.run("ip", "address", "add", f"{APART4}/32", "dev", "eth0")
        machine.outside.run(["ip", "route", "replace", PREFIX_APART4, "dev", "eth0"])
        yield
    finally:
        guest.remove()
        machine.libvirt.remove_network("apart")


@contextmanager
def running(machine: Machine, unit: str) -> Iterator[None]:
    """Start a service, and stop it at the end."""
    machine.systemctl("start", unit)
    try:
        yield
    finally:
        machine.systemctl("stop", unit)


@contextmanager
def firewalld_with(machine: Machine, setting: str) -> Iterator[None]:
    """Restart firewalld with another line in its configuration, and at the end as it was."""
    before = machine.read(FIREWALLD)
    key = setting.partition("=")[0]
    others = [line for line in before.splitlines() if not line.startswith(f"{key}=")]
    machine.write(FIREWALLD, "\n".join([*others, setting, ""]))
    machine.systemctl("restart", "firewalld.service")
    machine.libvirt.restart()
    try:
        yield
    finally:
        machine.write(FIREWALLD, before)
        machine.systemctl("restart", "firewalld.service")
        machine.libvirt.restart()


@pytest.fixture(scope="class")
def beside_firewalld(module_service: Sandbox) -> Iterator[None]:
    """firewalld, with libvirt's bridges in its zones; tests take `firewalld`."""
    machine = module_service.machine
    with running(machine, "firewalld.service"), apart(machine):
        # libvirt reports its bridges to firewalld when it starts them; those that were there before, when it starts.
        machine.libvirt.restart()
        yield
    # Its stop takes all rules of iptables' with it.
    machine.libvirt.restart()


@pytest.fixture
def firewalld(beside_firewalld: None, service: Sandbox) -> Sandbox:  # noqa: ARG001  asked for by name
    """The service beside firewalld."""
    return service


class TestFirewalld:
    """All beside one firewalld, whose start, and libvirt's with it, takes longer than each of them."""

    def test_firewalld_with_its_zones_and_its_reload(self, firewalld: Sandbox) -> None:
        machine = firewalld.machine
        firewalld.configure(HEAD + ROUTES)
        answers_everywhere(firewalld)
        routed(firewalld, APART4, "apart")

        def is_refused() -> bool:
            answer = machine.outside.fetch(f"http://{ROUTED4}/")
            assert not answer.answered
            return answer.outcome is Outcome.REFUSED

        # firewalld lets no one into libvirt's zone for networks behind NAT, and says so by ICMP, of which the kernel
        # sends a client one message a second (icmp_ratelimit, icmp(7)).
        wait_until(is_refused, f"{ROUTED4} is refused")
        machine.run("firewall-cmd", "--reload")
        answers_everywhere(firewalld)
        routed(firewalld, APART4, "apart")

    # Debian 12's firewalld shares its table.
    @pytest.mark.on(LibvirtFirewall.NFTABLES)
    def test_a_table_that_firewalld_keeps_to_itself_stops_nothing_else(self, firewalld: Sandbox) -> None:
        firewalld.configure(HEAD.replace("\n", f"\n{GATE}", 1) + ROUTES)
        answers_everywhere(firewalld)
        routed(firewalld, APART4, "apart")
        firewalld.says("the gate in inet firewalld filter_FORWARD could not be changed: ")

    def test_a_gate_in_firewalld_opens_its_zone_for_routes(self, firewalld: Sandbox) -> None:
        machine = firewalld.machine
        # Debian 12's shares its table, without such a setting.
        newer = machine.flavour == DEBIAN13_NFTABLES
        with firewalld_with(machine, "NftablesTableOwner=no") if newer else nullcontext():
            firewalld.configure(HEAD.replace("\n", f"\n{GATE}", 1) + ROUTES)
            routed(firewalld, ROUTED4, "routed")
            machine.run("firewall-cmd", "--reload")
            routed(firewalld, ROUTED4, "routed")
            answers_everywhere(firewalld)

    # Debian 12's firewalld has no such setting.
    @pytest.mark.on(LibvirtFirewall.NFTABLES)
    def test_what_explain_says_of_strict_forward_ports_mends_it(self, firewalld: Sandbox) -> None:
        machine = firewalld.machine
        firewalld.configure(HEAD + WEB)
        answers_everywhere(firewalld)
        with firewalld_with(machine, "StrictForwardPorts=yes"):
            wait_until(lambda: not machine.outside.fetch(PAGES[0]).answered, "firewalld refuses it")
            report = json.loads(machine.run("kvm-portfwd", "explain", "--json", f"{PUBLIC4}:8080", check=False).stdout)
            assert report["cause"] == "refused"
            assert f"Write {GATE.strip()} under [daemon] in /etc/portfwd.toml" in report["sentence"]
            machine.write(CONFIG, HEAD.replace("\n", f"\n{GATE}", 1) + WEB)
            for command in report["commands"]:
                machine.run(*shlex.split(command))
            answers_everywhere(firewalld)
            machine.run("firewall-cmd", "--reload")
            answers_everywhere(firewalld)


def test_ufw_enabled_reloaded_and_disabled(service: Sandbox) -> None:
    machine = service.machine
    machine.run("systemd-run", "--unit=lab-page", "python3", "-m", "http.server", "8099")
    own = f"http://{PUBLIC4}:8099/"
    wait_until(partial(_is_answered, service, own), "a page of the host itself")
    try:
        for words in (("--force", "enable"), ("reload",), ("allow", "9999/tcp")):
            machine.run("ufw", *words)
            answers_everywhere(service)
            assert not _is_answered(service, own), "ufw refuses nothing"
        machine.run("ufw", "disable")
        answers_everywhere(service)
        assert _is_answered(service, own)
    finally:
        machine.run("ufw", "--force", "reset")
        machine.systemctl("stop", "lab-page.service")
    machine.libvirt.restart()


@pytest.mark.on(LibvirtFirewall.NFTABLES)
def test_what_ufw_denies_to_a_client_is_not_served(service: Sandbox) -> None:
    """Where libvirt's rules are in a table of their own, ufw's are at the head of FORWARD."""
    machine, page = service.machine, PAGES[0]
    machine.run("ufw", "--force", "enable")
    try:
        answers_everywhere(service)
        machine.run("ufw", "route", "deny", "from", CLIENT4)
        wait_until(lambda: not _is_answered(service, page), "the client is refused")
        assert machine.outside.fetch(page, source=CLIENT4_SECOND).answered
        machine.run("ufw", "reload")
        wait_until(lambda: machine.outside.fetch(page, source=CLIENT4_SECOND).answered, "others are served")
        wait_until(lambda: not _is_answered(service, page), "the client is still refused")
    finally:
        machine.run("ufw", "--force", "reset")
    machine.libvirt.restart()


@pytest.fixture
def banning(service: Sandbox) -> Iterator[Machine]:
    """A machine on which failed logins at a guest are bans, by the action of the examples as the package brings it."""
    machine = service.machine
    server = service.web.place.popen(["python3", "-c", LOGINS])
    server.wait_line("ready")
    machine.write(CONFIG, BANNING)
    machine.systemctl("reload", UNIT)
    machine.run("cp", f"{EXAMPLES}/fail2ban/action.d/kvm-portfwd.conf", "/etc/fail2ban/action.d")
    for path, text in FAIL2BAN.items():
        machine.write(path, text)
    machine.systemctl("daemon-reload")
    try:
        yield machine
    finally:
        machine.systemctl("stop", "fail2ban.service")
        machine.systemctl("reset-failed", "fail2ban.service", check=False)
        server.stop()


@pytest.mark.on(LibvirtFirewall.NFTABLES)
def test_whom_fail2ban_bans_for_failed_logins_is_refused_until_the_ban_ends_without_it_too(
    service: Sandbox, banning: Machine
) -> None:
    machine = banning
    _begin_banning(machine)
    for _ in range(3):
        assert _fails_to_log_in(machine, CLIENT4).text == "no"
    wait_until(lambda: not _fails_to_log_in(machine, CLIENT4).answered, "the client is banned")
    assert not _is_answered(service, PAGES[0])
    assert _fails_to_log_in(machine, CLIENT4_SECOND).answered
    wait_until(lambda: are_aged(machine, 3600 - 600), "the ban is written down, and older from now on")
    machine.run("truncate", "--size=0", LOG)
    _kill_fail2ban(machine)
    assert not _is_answered(service, PAGES[0])
    _begin_banning(machine)
    wait_until(lambda: _is_banned_for(machine, "(9m[0-9]+s|10m([12]s)?)"), "what is left of the ban is restored")
    machine.run("fail2ban-client", "set", "guest", "unbanip", CLIENT4)
    wait_until(lambda: _fails_to_log_in(machine, CLIENT4).answered, "the ban is over")
    machine.run("fail2ban-client", "set", "guest", "bantime", "3")
    machine.run("fail2ban-client", "set", "guest", "banip", CLIENT4)
    wait_until(lambda: _is_banned_for(machine, "[0-5]s"), "the client is banned for a moment")
    _kill_fail2ban(machine)
    wait_until(lambda: _is_answered(service, PAGES[0]), "the ban is over without it")


def _begin_banning(machine: Machine) -> None:
    machine.systemctl("start", "fail2ban.service")
    wait_until(lambda: "guest" in machine.run("fail2ban-client", "status", check=False).stdout, "the jail")


def _kill_fail2ban(machine: Machine) -> None:
    machine.systemctl("kill", "--signal=KILL", "fail2ban.service")
    wait_until(lambda: machine.property("ActiveState", "fail2ban.service") == "failed", "fail2ban is gone")


def _is_banned_for(machine: Machine, pattern: str) -> bool:
    listed = machine.run("nft", "list", "set", "ip", "kvm_portfwd", "set_banned").stdout
    return bool(re.search(f"{CLIENT4} timeout {pattern} ", listed))


def _fails_to_log_in(machine: Machine, source: str) -> Answer:
    return machine.outside.tcp(PUBLIC4, 2222, source=source, timeout=1)


def test_docker_with_a_forward_policy_of_drop(service: Sandbox) -> None:
    machine = service.machine
    saved = machine.run("iptables-save").stdout
    machine.run("iptables-restore", "--noflush", stdin=DOCKER)
    docker = "".join(line for line in machine.snapshot_foreign().splitlines(keepends=True) if "DOCKER" in line)
    answers_everywhere(service)
    # What Docker's own DNAT leads to is not let in by us.
    assert not machine.outside.fetch(f"http://{PUBLIC4}:9000/").answered
    machine.systemctl("restart", "kvm-portfwd.service")
    answers_everywhere(service)
    after = "".join(line for line in machine.snapshot_foreign().splitlines(keepends=True) if "DOCKER" in line)
    assert after == docker
    machine.run("iptables-restore", stdin=saved)
    answers_everywhere(service)


def test_libvirt_moves_from_firewall_to_firewall(service: Sandbox) -> None:
    machine = service.machine
    newer = machine.flavour == DEBIAN13_NFTABLES
    ways = [LibvirtFirewall.LEGACY, LibvirtFirewall.IPTABLES, *([LibvirtFirewall.NFTABLES] if newer else [])]
    for firewall in ways:
        machine.libvirt.move_to(firewall)
        answers_everywhere(service)
        where = "iptables-legacy" if firewall is LibvirtFirewall.LEGACY else "nftables"
        service.says(f"rules are in {where}: ")
