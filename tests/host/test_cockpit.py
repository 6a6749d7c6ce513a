"""What the page in Cockpit changes, by clicking in a real browser, and what a client outside then gets.

With Cockpit 337 of Debian 13 and 287 of Debian 12.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import MakeLxcGuest, MakeNetwork, StartDaemon
from tests.host.cockpit import (
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
BY_HAND = "# by hand\n"


@pytest.fixture(scope="module")
def page(module_host: Host) -> Iterator[Browser]:
    """A browser, and Cockpit with the page."""
    with browsing(module_host) as browser:
        yield browser


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
    shared_scene: Scene, page: Browser, tmp_path: Path
) -> None:
    scene, host, looks = shared_scene, shared_scene.host, Looks(page, tmp_path)
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
    asked = alert("warning", "still waits to be confirmed")
    page.wait(asked)
    assert page.is_in_view(asked)
    looks.are_fine()
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
    looks.are_fine()
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
