"""The page in Cockpit, by clicking in a real browser, and what a client outside then gets.

With Cockpit 337 of Debian 13 and 287 of Debian 12.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import MakeLxcGuest, MakeNetwork, StartDaemon
from tests.host.cockpit import (
    DIALOG,
    DROP_IN,
    GROUP,
    MEMBERS_PORT,
    NOTHING,
    PORT,
    Looks,
    act,
    alert,
    browsing,
    button,
    done,
    field,
    fill,
    form_group,
    forwarded,
    leave,
    menu,
    row,
    send,
    show,
    without_socket,
)
from tests.host.conftest import HEAD, WEB4, Scene, entry, filled
from tests.lab.browser import Browser
from tests.lab.daemon import CONFIG
from tests.lab.domain import Link
from tests.lab.host import CLIENT4, PUBLIC4, Host
from tests.lab.place import wait_until
from tests.lab.release import LibvirtFirewall

pytestmark = pytest.mark.on(LibvirtFirewall.IPTABLES, LibvirtFirewall.NFTABLES)
CONTROL = f'[control]\ngroup = "{GROUP}"\n'
MAIL4, MAIL4_NEW = "198.51.100.8", "198.51.100.9"
ROUTED4 = "203.0.113.66"
STRANGER4 = "198.51.100.77"
BY_HAND = "# by hand\n"


@pytest.fixture(scope="module")
def page(module_host: Host) -> Iterator[Browser]:
    """A browser, and Cockpit with the page."""
    with browsing(module_host) as browser:
        yield browser


def routed(network: str, addresses: str) -> str:
    return f'[[route]]\nnetwork = "{network}"\naddresses = ["{addresses}"]\n'


def drop_ins(host: Host) -> list[str]:
    return host.run("find", "/etc/portfwd.d", "-type", "f", check=False).stdout.split()


def test_a_forward_is_added_changed_and_removed_by_clicking(shared_scene: Scene, page: Browser) -> None:
    scene, host = shared_scene, shared_scene.host
    scene.daemon("", HEAD + CONTROL)
    show(page)
    page.wait(NOTHING)
    forwarded(page, "web", "8000", "80", WEB4)
    done(page, "The entry was added")
    page.wait(row("tcp *:8000"))
    scene.answers(lambda: host.outside.fetch(f"http://{PUBLIC4}:8000/"), f"web {CLIENT4}")

    act(page, "tcp *:8000", "Change")
    page.wait(f"{field('domain')}/ancestor::form")
    fill(page, host_0="8001")
    send(page, "Save")
    done(page, "The entry was changed")
    page.wait(row("tcp *:8001"))
    scene.answers(lambda: host.outside.fetch(f"http://{PUBLIC4}:8001/"), f"web {CLIENT4}")
    scene.refused(lambda: host.outside.fetch(f"http://{PUBLIC4}:8000/"))

    act(page, "tcp *:8001", "Remove")
    assert '"8001:80"' in page.wait("//pre")
    send(page, "Remove")
    done(page, "The entry was removed")
    page.wait(NOTHING)
    scene.refused(lambda: host.outside.fetch(f"http://{PUBLIC4}:8001/"))
    assert drop_ins(host) == []
    assert page.log() == []


def test_a_public_address_is_added_changed_and_removed(shared_scene: Scene, page: Browser) -> None:
    scene, host = shared_scene, shared_scene.host
    scene.daemon("")
    show(page)
    page.click(button("Add a forward"))
    page.click("//label[.='A public address']")
    page.click(f"{form_group('domain')}{button('web (running)')}")
    fill(page, public=MAIL4, assign="eth0", address=WEB4)
    send(page, "Add")
    done(page, "The entry was added")
    page.wait(row(MAIL4))
    scene.answers(lambda: host.outside.fetch(f"http://{MAIL4}/"), f"web {CLIENT4}")

    act(page, MAIL4, "Change")
    fill(page, public=MAIL4_NEW)
    send(page, "Save")
    done(page, "The entry was changed")
    scene.answers(lambda: host.outside.fetch(f"http://{MAIL4_NEW}/"), f"web {CLIENT4}")

    act(page, MAIL4_NEW, "Remove")
    send(page, "Remove")
    done(page, "The entry was removed")
    scene.refused(lambda: host.outside.fetch(f"http://{MAIL4_NEW}/"))


def test_a_route_is_added_changed_and_removed(
    host: Host, network: MakeNetwork, lxc_guest: MakeLxcGuest, daemon: StartDaemon, page: Browser
) -> None:
    network("public", "192.168.130.0/24")
    guest = lxc_guest("routed", Link("public", ("192.168.130.10/24",)))
    guest.run("ip", "address", "add", f"{ROUTED4}/32", "dev", "eth0")
    daemon(HEAD)
    show(page)
    page.click(button("Add"))
    page.click("//label[.='Addresses of a network']")
    page.click(button("public (192.168.130.0/24)"))
    fill(page, addresses="203.0.113.64/29", proxy="eth0")
    send(page, "Add")
    done(page, "The entry was added")
    page.wait(row("203.0.113.64/29"))
    host.outside.run(["ip", "route", "replace", "203.0.113.64/29", "dev", "eth0"])
    wait_until(lambda: host.outside.fetch(f"http://{ROUTED4}/").answered, "the routed guest answers")

    act(page, "203.0.113.64/29", "Change")
    fill(page, addresses=f"{ROUTED4}/32, 203.0.113.80/29")
    send(page, "Save")
    done(page, "The entry was changed")
    page.wait(row("203.0.113.80/29"))
    wait_until(lambda: host.outside.fetch(f"http://{ROUTED4}/").answered, "it still answers")

    act(page, "203.0.113.80/29", "Remove")
    send(page, "Remove")
    done(page, "The entry was removed")
    wait_until(lambda: not host.outside.fetch(f"http://{ROUTED4}/").answered, "it answers no more")
    host.outside.run(["ip", "route", "del", "203.0.113.64/29"])


def test_what_is_wrong_stands_beside_its_field_and_what_is_taken_is_asked_about(
    shared_scene: Scene, page: Browser
) -> None:
    scene, host = shared_scene, shared_scene.host
    scene.daemon(entry("web", "8000:80", "WEB4"))
    show(page)
    page.wait(row("tcp *:8000"))
    forwarded(page, "neighbour", "70000")
    assert "70000" in page.wait("//*[@id='entry-ports-0-help']//*[contains(@class, 'pf-m-error')]")
    assert drop_ins(host) == []

    # The page itself is a process that has a port.
    fill(page, host_0=str(PORT))
    send(page, "Add")
    assert "cockpit-ws" in page.wait(alert("warning", "has this port already"))

    # Another program's rule takes it.
    rules = (
        "table ip other { chain pre { type nat hook prerouting priority -150; tcp dport 8005 dnat to 192.0.2.5; }; }"
    )
    host.run("nft", rules)
    fill(page, host_0="8005")
    send(page, "Add")
    page.wait_gone(alert("warning", "cockpit-ws"))
    assert "other" in page.wait(alert("warning", "has this port already"))
    assert drop_ins(host) == []
    host.run("nft", "delete", "table", "ip", "other")
    send(page, "Save anyway")
    done(page, "The entry was added")
    assert drop_ins(host) == [DROP_IN]
    host.run("rm", DROP_IN)


def test_a_configuration_that_waits_to_be_confirmed_or_was_not_is_told_and_asked_about(
    shared_scene: Scene, page: Browser
) -> None:
    scene, host = shared_scene, shared_scene.host
    lapsed = alert("danger", "The files are not what is in force")

    def reloaded(port: int, time: str) -> None:
        host.write(CONFIG, HEAD + filled(entry("web", f"{port}:80", "WEB4")))
        host.portfwd("reload", "--confirm", time)

    scene.daemon("")
    show(page)
    page.wait(NOTHING)
    reloaded(8000, "1h")
    assert " left)" in page.wait(alert("warning", "the configuration before comes back"))
    forwarded(page, "web", "8001", "80", WEB4)
    page.wait(alert("warning", "still waits to be confirmed"))
    assert drop_ins(host) == []
    send(page, "Save anyway")
    done(page, "The entry was added")
    page.click(button("Keep this configuration"))
    page.wait_gone(alert("warning", "the configuration before comes back"))
    assert host.portfwd("confirm", check=False).returncode != 0

    reloaded(8002, "2s")
    page.wait(lapsed)
    page.wait(row("tcp *:8000"))
    act(page, "tcp *:8001", "Remove")
    send(page, "Remove")
    page.wait(alert("warning", "was not confirmed in time"))
    assert drop_ins(host) == [DROP_IN]
    scene.refused(lambda: host.outside.fetch(f"http://{PUBLIC4}:8002/"))
    send(page, "Remove anyway")
    done(page, "The entry was removed")
    page.wait_gone(lapsed)
    scene.answers(lambda: host.outside.fetch(f"http://{PUBLIC4}:8002/"), f"web {CLIENT4}")


def test_what_is_written_meanwhile_is_not_overwritten(shared_scene: Scene, page: Browser) -> None:
    scene, host = shared_scene, shared_scene.host
    scene.daemon("")
    show(page)

    def told() -> None:
        page.wait(alert("danger", "The file was changed meanwhile"))
        assert host.run("cat", DROP_IN).stdout.startswith(BY_HAND)
        leave(page)

    page.click(button("Add"))
    page.wait(button("neighbour (running)"))
    host.write(DROP_IN, BY_HAND)
    fill(page, domain="web", host_0="8002")
    send(page, "Add")
    told()

    forwarded(page, "web", "8002", "80", WEB4)
    done(page, "The entry was added")
    text = host.run("cat", DROP_IN).stdout
    assert text.startswith(BY_HAND)
    act(page, "tcp *:8002", "Change")
    page.wait(button("Save"))
    host.write(DROP_IN, f"{text}# more\n")
    fill(page, host_0="8003")
    send(page, "Save")
    told()

    act(page, "tcp *:8002", "Remove")
    page.wait("//pre")
    host.write(DROP_IN, f"{text}# still more\n")
    send(page, "Remove")
    told()
    # What is wrong elsewhere is named by its place.
    host.write(DROP_IN, text)
    host.write(CONFIG, f"{HEAD}nonsense = 1\n")
    act(page, "tcp *:8002", "Remove")
    page.wait("//pre")
    send(page, "Remove")
    assert f"{CONFIG}:3: " in page.wait(alert("danger", "nothing was written"))
    assert host.run("cat", DROP_IN).stdout == text
    host.write(CONFIG, HEAD)
    leave(page)
    # Where the entry stood, another one is.
    host.write(DROP_IN, text.replace('"web"', '"neighbour"'))
    act(page, "tcp *:8002", "Remove")
    send(page, "Remove")
    told()
    host.run("rm", DROP_IN)


def test_ports_are_open_for_a_while_and_closed_before(shared_scene: Scene, page: Browser) -> None:
    scene, url = shared_scene, f"http://{PUBLIC4}:8003/"
    scene.daemon("")
    show(page)
    page.click(button("Add"))
    page.choose(field("seconds"), "Eight hours")
    fill(page, domain="web", host_0="70000", guest_0="80")
    send(page, "Add")
    assert "70000" in page.wait("//*[@id='entry-ports-0-help']//*[contains(@class, 'pf-m-error')]")
    fill(page, host_0=str(PORT))
    send(page, "Add")
    assert "cockpit-ws" in page.wait(alert("warning", "has this port already"))
    page.wait(button("Open anyway"))
    fill(page, host_0="8003")
    send(page, "Add")
    done(page, "The ports are open for a while")
    assert "7 h 59 min left" in page.wait(row("tcp *:8003")) or "8 h 0 min left" in page.wait(row("tcp *:8003"))
    scene.answers(lambda: scene.host.outside.fetch(url), f"web {CLIENT4}")
    assert drop_ins(scene.host) == []
    act(page, "tcp *:8003", "Close")
    send(page, "Close")
    done(page, "The port is closed")
    page.wait(NOTHING)
    scene.refused(lambda: scene.host.outside.fetch(url))


def test_bytes_of_open_connections_are_shown_where_the_host_counts_them(shared_scene: Scene, page: Browser) -> None:
    scene, host, setting = shared_scene, shared_scene.host, "net.netfilter.nf_conntrack_acct"
    not_counted = "//p[contains(., 'Bytes are not counted')]"
    server = scene.far.serve_tcp(9000)
    scene.daemon(entry("far", "9000", "FAR4"))
    assert scene.converse(9000).goes_on()
    show(page)
    assert setting in page.wait(not_counted)
    host.run("sysctl", "-w", f"{setting}=1")
    try:
        assert scene.converse(9000).goes_on()
        page.wait(f"{row('tcp *:9000')}/td[@data-label='Open now' and starts-with(., '2 · ') and contains(., 'B')]")
        page.wait_gone(not_counted)
    finally:
        host.run("sysctl", "-w", f"{setting}=0")
    server.stop()


def test_what_waits_or_is_refused_says_what_helps(shared_scene: Scene, page: Browser) -> None:
    host = shared_scene.host
    host.run("sysctl", "-w", "net.ipv4.ip_forward=0")
    try:
        routes = routed("default", "203.0.113.64/29") + routed("gone", "203.0.113.80/29")
        shared_scene.daemon(routes, f"{HEAD}ip_forward = false\n")
        show(page)
        for listens, state, reason, remedy in (
            ("203.0.113.64/29", "Refused", "IPv4 forwarding is off", "ip_forward"),
            ("203.0.113.80/29", "Waiting", "no such network", "Write a network that libvirt has"),
        ):
            page.wait(f"{row(listens)}//*[normalize-space()='{state}']")
            assert reason in page.wait(f"{row(listens)}//*[@class='reason']")
            page.click(f"{row(listens)}{button('What helps?')}")
            page.wait(alert("danger", remedy))
            leave(page)
    finally:
        host.run("sysctl", "-w", "net.ipv4.ip_forward=1")


def test_why_a_connection_fails_is_explained_and_leads_to_the_entry_that_helps(
    shared_scene: Scene, page: Browser
) -> None:
    host = shared_scene.host
    host.write(DROP_IN, filled(entry("web", "8010:80", "WEB4", f'sources = ["{CLIENT4}/32"]')))
    shared_scene.daemon(entry("web", "8000:80 8004:81", "WEB4"))
    show(page)
    page.wait(row("tcp *:8004"))
    act(page, "tcp *:8004", "Explain")
    assert "81" in page.wait("//ol/li[@class='no']")
    page.wait(alert("danger", "nothing listens on tcp port 81"))
    page.write("//*[@id='explain-to']", ":8000")
    send(page, "Explain")
    page.wait(alert("success", "It works"))
    page.write("//*[@id='explain-to']", "nonsense")
    send(page, "Explain")
    page.wait(alert("danger", "write one such as"))
    assert page.texts(button("Change the entry")) == []

    page.write("//*[@id='explain-to']", ":8010")
    send(page, "Explain")
    page.wait(alert("success", "It works"))
    page.write("//*[@id='explain-from']", STRANGER4)
    send(page, "Explain")
    assert f"{STRANGER4}/32" in page.wait(alert("danger", "to sources in"))
    page.click(button("Change the entry"))
    page.wait(f"{field('domain')}/ancestor::form")
    fill(page, sources=f"{CLIENT4}/32 {STRANGER4}/32")
    send(page, "Save")
    done(page, "The entry was changed")
    page.click(button("Explain a connection"))
    page.write("//*[@id='explain-to']", ":8010")
    page.write("//*[@id='explain-from']", STRANGER4)
    send(page, "Explain")
    page.wait(alert("success", "It works"))
    host.run("rm", DROP_IN)


def test_a_member_of_the_group_sees_and_cannot_change(shared_scene: Scene, page: Browser) -> None:
    shared_scene.host.write(DROP_IN, filled(entry("web", "8000:80", "WEB4")))
    shared_scene.daemon("", HEAD + CONTROL)
    show(page, MEMBERS_PORT)
    page.wait(row("tcp *:8000"))
    assert page.texts(button("Add")) == []
    assert len(page.texts("//button[normalize-space()='Add']")) == 1
    page.click(menu("tcp *:8000"))
    items = "//*[@role='menuitem' and (@disabled or @aria-disabled='true')]"
    assert page.texts(items) == ["Change", "Remove"]
    page.click("//*[@role='menuitem' and normalize-space()='Explain']")
    page.wait(alert("success", "It works"))
    shared_scene.host.run("rm", DROP_IN)


def test_the_page_follows_the_daemon_as_it_ends_and_comes_back(shared_scene: Scene, page: Browser) -> None:
    scene = shared_scene
    daemon = scene.daemon(entry("web", "8000:80", "WEB4"))
    show(page)
    page.wait(row("tcp *:8000"))
    daemon.terminate()
    page.wait("//h1[contains(., 'does not answer')]")
    scene.daemon(entry("web", "8000:80", "WEB4"))
    page.wait(row("tcp *:8000"))
    scene.wipe()
    page.wait("//dd[contains(., 'nft')]")
    scene.host.libvirt.stop()
    page.wait(alert("warning", "libvirt does not answer"))
    scene.host.libvirt.start()
    page.wait_gone("//*[contains(., 'libvirt does not answer')]")
    # The daemon lives on, and cannot make its socket again for a while.
    with without_socket(scene.host):
        page.wait("//h1[contains(., 'does not answer')]")
    page.wait(row("tcp *:8000"))


def test_it_looks_well_and_what_helps_people_who_cannot_see_finds_nothing_serious(
    shared_scene: Scene, page: Browser, tmp_path: Path
) -> None:
    """By axe, in light and dark, wide and narrow; `PICTURES` names the directory in which pictures of that are kept."""
    scene, looks = shared_scene, Looks(page, Path(os.environ.get("PICTURES", tmp_path)))
    waiting = entry("shop", "8443:443", "192.168.122.99")
    refused = filled(f'[[nat]]\ndomain = "neighbour"\naddress = "NEIGHBOUR4"\npublic = "{MAIL4}"\nassign = "eth9"\n')
    server = scene.far.serve_tcp(9000)
    live = entry("web", "8000:80 5353:53/udp", "WEB4") + entry("far", "9000", "FAR4")
    daemon = scene.daemon(live + waiting + refused)
    scene.host.portfwd("open", "neighbour", "8022:80", "--for", "8h")
    scene.answers(lambda: scene.host.outside.fetch(f"http://{PUBLIC4}:8000/"), f"web {CLIENT4}")
    scene.wipe()
    assert scene.converse(9000).goes_on()
    show(page)
    page.wait("//dd[contains(., 'nft')]")
    page.wait(f"{row('tcp *:9000')}/td[@data-label='Open now' and starts-with(., '1')]")
    looks.are_fine("page")

    page.click(button("Add"))
    page.wait(button("web (running)"))
    looks.are_fine("form")
    fill(page, domain="web", host_0="70000")
    send(page, "Add")
    page.wait("//*[@id='entry-ports-0-help']//*[contains(@class, 'pf-m-error')]")
    looks.are_fine()
    for kind in ("A public address", "Addresses of a network"):
        page.click(f"//label[.='{kind}']")
        looks.are_fine()
    leave(page)

    page.click(f"{row('tcp *:8443')}{button('What helps?')}")
    page.wait("//ol/li[@class='no']")
    page.wait(f"//footer{button('Explain')}")
    looks.are_fine("explain")
    leave(page)
    act(page, "tcp *:8000", "History")
    page.wait_gone(f"{DIALOG}//*[@role='progressbar']")
    looks.are_fine()
    leave(page)
    daemon.terminate()
    page.wait("//h1[contains(., 'does not answer')]")
    looks.are_fine()
    page.run("localStorage.clear()")
    server.stop()
