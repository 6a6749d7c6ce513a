"""Who may connect, as its user meets it: files of networks, bans by other programs, and limits."""

import json
import re
from collections.abc import Iterator
from ipaddress import ip_address
from math import ceil

import pytest

from tests.host.conftest import HEAD, Scene, entry, filled
from tests.lab.host import CLIENT4, CLIENT4_SECOND, PUBLIC4
from tests.lab.place import wait_until
from tests.lab.release import LibvirtFirewall

URL = f"http://{PUBLIC4}:8000/"
LIST = "/etc/portfwd.d/blocklist.txt"
SETS = f"""
[[set]]
name = "blocklist"
file = "{LIST}"

[[set]]
name = "banned"
external = true
"""
EVERYWHERE = HEAD + 'deny = ["set:banned"]\n'
WEB = entry("web", "8000:80 9000", "WEB4", 'deny = ["set:blocklist"]') + SETS


@pytest.fixture
def scene(shared_scene: Scene) -> Iterator[Scene]:
    """The scene with an empty list of networks."""
    shared_scene.host.run("mkdir", "-p", "/etc/portfwd.d")
    write(shared_scene, "# none yet\n")
    yield shared_scene
    shared_scene.host.run("rm", "-rf", "/etc/portfwd.d")


@pytest.fixture
def with_server(scene: Scene) -> Iterator[Scene]:
    """The same where the guest has one more server."""
    server = scene.web.serve_tcp(9000)
    yield scene
    server.stop()


def is_kept(scene: Scene, address: str) -> bool:
    kept = scene.host.run("cat", "/var/lib/kvm-portfwd/external-sets.json", check=False).stdout
    return str(int(ip_address(address))) in kept


def in_table(scene: Scene) -> dict[str, int]:
    """Give who is in the set, each with the hours that are left, the last one begun."""
    words = "nft", "-j", "list", "set", "ip", "kvm_portfwd", "set_banned"
    listed = scene.host.run(*words, check=False).stdout or '{"nftables": [{"set": {}}]}'
    elements = [each["elem"] for each in json.loads(listed)["nftables"][-1]["set"].get("elem", [])]
    return {each["val"]: ceil(each["expires"] / 3600) for each in elements}


def in_ipset(scene: Scene) -> dict[str, int]:
    """Give the same of the ipset."""
    listed = scene.host.run("ipset", "save", "KVMPF_banned_4", check=False).stdout
    found = re.findall(r"^add \S+ (\S+) timeout (\d+)$", listed, re.MULTILINE)
    return {address: ceil(int(left) / 3600) for address, left in found}


def write(scene: Scene, text: str) -> None:
    scene.host.run("sh", "-c", 'cat >"$1"', "sh", LIST, stdin=text)


def is_a_problem(scene: Scene, text: str) -> bool:
    return any(text in problem for problem in json.loads(scene.host.portfwd("status", "--json").stdout)["problems"])


def is_served(scene: Scene, source: str = CLIENT4) -> bool:
    return scene.host.outside.fetch(URL, source=source, timeout=0.5).answered


def ban(scene: Scene, verb: str, element: str = CLIENT4) -> None:
    scene.host.run("nft", verb, "element", "ip", "kvm_portfwd", "set_banned", f"{{ {element} }}")


@pytest.mark.on(LibvirtFirewall.NFTABLES)
def test_who_is_put_into_a_file_is_cut_off_and_a_wrong_file_changes_nothing(with_server: Scene) -> None:
    scene = with_server
    daemon = scene.daemon(WEB, EVERYWHERE)
    talk = scene.converse(9000)
    wait_until(lambda: is_served(scene), "the client is served")
    write(scene, f"{CLIENT4}/32 # bad\n")
    wait_until(lambda: not is_served(scene), "the client is not served any more")
    wait_until(lambda: not talk.goes_on(), "its connection has ended")
    assert is_served(scene, CLIENT4_SECOND)
    write(scene, f"{CLIENT4_SECOND}\nnonsense\n")
    daemon.wait_log(rf"^error: {LIST}:2: .*nonsense")
    assert is_served(scene, CLIENT4_SECOND)
    assert not is_served(scene)
    assert is_a_problem(scene, "nonsense")
    # Blank, as an editor leaves it for a moment, it lets no one in either.
    write(scene, "")
    wait_until(lambda: is_a_problem(scene, f"{LIST}:1: is empty, while 1 network "), "the blank file is refused")
    assert not is_served(scene)
    write(scene, "# none\n")
    wait_until(lambda: is_served(scene), "the client is served again")


@pytest.mark.on(LibvirtFirewall.NFTABLES)
def test_a_ban_by_another_program_cuts_off_and_outlives_wipes_and_restarts(with_server: Scene) -> None:
    scene = with_server
    daemon = scene.daemon(WEB, EVERYWHERE)
    talk = scene.converse(9000)
    ban(scene, "add", f"{CLIENT4} timeout 1h")
    assert not is_served(scene)
    wait_until(lambda: not talk.goes_on(), "its connection has ended")
    scene.wipe()
    wait_until(lambda: is_served(scene, CLIENT4_SECOND), "the wipe is mended")
    assert not is_served(scene)
    daemon.terminate()
    scene.wipe()
    daemon = scene.daemon(WEB, EVERYWHERE)
    wait_until(lambda: is_served(scene, CLIENT4_SECOND), "the rules are there again")
    assert not is_served(scene)
    ban(scene, "add", f"{CLIENT4_SECOND} timeout 2h")
    wait_until(lambda: is_kept(scene, CLIENT4_SECOND), "it is on the disk")
    daemon.kill()
    scene.wipe()
    scene.daemon(WEB, EVERYWHERE)
    wait_until(lambda: in_table(scene) == {CLIENT4: 1, CLIENT4_SECOND: 2}, "both are back, with their time")
    ban(scene, "delete", CLIENT4_SECOND)
    assert not is_served(scene)
    ban(scene, "delete")
    wait_until(lambda: is_served(scene), "the ban is over")


@pytest.mark.on(LibvirtFirewall.NFTABLES)
def test_over_the_rate_a_client_waits_and_another_does_not(scene: Scene) -> None:
    scene.daemon(entry("web", "8000:80", "WEB4", 'rate = "2/day"'))
    wait_until(lambda: is_served(scene, CLIENT4_SECOND), "the rules are there")
    assert [is_served(scene) for _ in range(3)] == [True, True, False]


@pytest.mark.on(LibvirtFirewall.LEGACY)
def test_in_the_legacy_tables_sets_are_ipsets_and_what_others_put_in_outlives_wipes_and_restarts(
    with_server: Scene,
) -> None:
    scene = with_server
    daemon = scene.daemon(WEB, EVERYWHERE)
    talk = scene.converse(9000)
    ban_in_ipset(scene, "add", CLIENT4, "timeout", "3600")
    assert not is_served(scene)
    assert is_served(scene, CLIENT4_SECOND)
    wait_until(lambda: not talk.goes_on(), "its connection has ended")
    explained = scene.host.portfwd("explain", "--from", CLIENT4, f"{PUBLIC4}:8000", check=False).stdout
    assert "set banned" in explained
    wipe_ipsets_too(scene)
    wait_until(lambda: is_served(scene, CLIENT4_SECOND), "the wipe is mended")
    assert not is_served(scene)
    daemon.terminate()
    wipe_ipsets_too(scene)
    daemon = scene.daemon(WEB, EVERYWHERE)
    wait_until(lambda: is_served(scene, CLIENT4_SECOND), "the rules are there again")
    assert not is_served(scene)
    ban_in_ipset(scene, "add", CLIENT4_SECOND, "timeout", "7200")
    wait_until(lambda: is_kept(scene, CLIENT4_SECOND), "it is on the disk")
    daemon.kill()
    wipe_ipsets_too(scene)
    scene.daemon(WEB, EVERYWHERE)
    wait_until(lambda: in_ipset(scene) == {CLIENT4: 1, CLIENT4_SECOND: 2}, "both are back, with their time")
    ban_in_ipset(scene, "del", CLIENT4_SECOND)
    assert not is_served(scene)
    ban_in_ipset(scene, "del", CLIENT4)
    wait_until(lambda: is_served(scene), "the ban is over")
    write(scene, CLIENT4)
    wait_until(lambda: not is_served(scene), "who is in the file is not served")


@pytest.mark.on(LibvirtFirewall.LEGACY)
def test_in_the_legacy_tables_a_client_over_the_rate_is_dropped_and_counted(scene: Scene) -> None:
    scene.daemon(entry("web", "8000:80", "WEB4", 'rate = "2/day"'))
    wait_until(lambda: is_served(scene, CLIENT4_SECOND), "the rules are there")
    assert [is_served(scene) for _ in range(3)] == [True, True, False]
    (row,) = json.loads(scene.host.portfwd("status", "--json").stdout)["openings"]
    assert row["dropped"] >= 1
    assert {"source": CLIENT4, "dropped": None} in row["limited"]
    text = scene.host.portfwd("status").stdout
    assert re.search(rf"^limited +web: .*{re.escape(CLIENT4)}", text, re.MULTILINE)
    told = scene.host.portfwd("explain", "--from", CLIENT4, f"{PUBLIC4}:8000", check=False).stdout
    assert "what it may open is used up" in told


@pytest.mark.on(LibvirtFirewall.LEGACY)
def test_what_the_host_lacks_for_sets_is_refused_by_check_and_by_a_reload(scene: Scene) -> None:
    host, program = scene.host, "/usr/sbin/ipset"
    plain = entry("web", "8000:80", "WEB4")
    daemon = scene.daemon(plain)
    wait_until(lambda: is_served(scene), "the rules are there")
    host.run("mv", program, f"{program}.away")
    try:
        opened = host.portfwd("open", "web", "8022:80")
        assert re.search("^warning: .* the clock is put back .* package ipset", opened.stderr, re.MULTILINE)
        host.portfwd("close", "web")
        host.write("/etc/portfwd.toml", EVERYWHERE + filled(WEB))
        for command, what in ("check", "/etc/portfwd.toml:"), ("reload", "the old one stays in force"):
            refused = host.portfwd(command, check=False)
            assert refused.returncode == 78
            assert re.search(
                r"^/etc/portfwd.toml:\d+: what has set:… .*; install the package ipset$", refused.stderr, re.MULTILINE
            )
            assert what in refused.stderr
        assert is_served(scene)
    finally:
        host.run("mv", f"{program}.away", program)
    assert host.portfwd("check").stdout.startswith("/etc/portfwd.toml: fine")
    daemon.reload()
    assert not host.portfwd("open", "web", "8022:80").stderr
    host.portfwd("close", "web")
    host.write("/etc/portfwd.toml", HEAD + filled(entry("web", "8000:80", "WEB4", "max_open = 9")))
    assert "warning: max_open counts anew in iptables-legacy" in host.portfwd("check").stderr


def ban_in_ipset(scene: Scene, verb: str, *element: str) -> None:
    scene.host.run("ipset", verb, "KVMPF_banned_4", *element)


def wipe_ipsets_too(scene: Scene) -> None:
    for program in ("iptables-legacy", "ip6tables-legacy"):
        for table in ("nat", "mangle"):
            scene.host.run(program, "-w", "-t", table, "-F")
    scene.host.run("ipset", "destroy")
