"""What the page in Cockpit shows, how it looks, also in another language, by keys alone, and with many forwards.

With Cockpit 337 of Debian 13 and 287 of Debian 12; the last two with the former alone.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host.cockpit import (
    DIALOG,
    DOWN,
    DROP_IN,
    ENTER,
    ESCAPE,
    NOTHING,
    SHELLS_PORT,
    TAB,
    Looks,
    act,
    alert,
    browsing,
    button,
    done,
    field,
    fill,
    go_to,
    leave,
    menu,
    routed,
    row,
    send,
    serving,
    show,
    without_socket,
)
from tests.host.conftest import HEAD, WEB4, Scene, entry, filled
from tests.lab.browser import Browser
from tests.lab.computer import SOURCE
from tests.lab.daemon import CONFIG
from tests.lab.host import CLIENT4, PUBLIC4, Host
from tests.lab.place import wait_until
from tests.lab.release import LibvirtFirewall

pytestmark = pytest.mark.on(LibvirtFirewall.IPTABLES, LibvirtFirewall.NFTABLES)
on_one = pytest.mark.on(LibvirtFirewall.NFTABLES)
MAIL4, STRANGER4 = "198.51.100.8", "198.51.100.77"
# What PatternFly says by itself, where nothing else is said.
PATTERNFLYS_OWN = ("Kebab", "Reset", "Go to", "Close", "alert:", "per page", "Contents", "Loading", "Show Less")


@pytest.fixture(scope="module")
def page(module_host: Host) -> Iterator[Browser]:
    """A browser, and Cockpit with the page."""
    with browsing(module_host) as browser:
        yield browser


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
    scene, host, looks = shared_scene, shared_scene.host, Looks(page, Path(os.environ.get("PICTURES", tmp_path)))
    waiting = entry("shop", "8443:443", "192.168.122.99")
    refused = filled(f'[[nat]]\ndomain = "neighbour"\naddress = "NEIGHBOUR4"\npublic = "{MAIL4}"\nassign = "eth9"\n')
    server = scene.far.serve_tcp(9000)
    live = entry("web", "8000:80 5353:53/udp", "WEB4") + entry("far", "9000", "FAR4")
    host.write(DROP_IN, waiting)
    daemon = scene.daemon(live + refused)
    host.portfwd("open", "neighbour", "8022:80", "--for", "8h")
    scene.answers(lambda: host.outside.fetch(f"http://{PUBLIC4}:8000/"), f"web {CLIENT4}")
    scene.wipe()
    assert scene.converse(9000).goes_on()
    show(page)
    page.wait("//dd[contains(., 'nft')]")
    page.wait(f"{row('tcp *:9000')}/td[@data-label='Open now' and starts-with(., '1')]")
    looks.are_fine("page")
    forms_look_well(page, looks)

    page.click(f"{row('tcp *:8443')}{button('What helps?')}")
    page.wait("//ol/li[@class='no']")
    page.wait(f"//footer{button('Explain')}")
    page.wait(button("Change the entry"))
    looks.are_fine("explain")
    leave(page)
    act(page, "tcp *:8000", "History")
    page.wait_gone(f"{DIALOG}//*[@role='progressbar']")
    looks.are_fine()
    leave(page)

    page.click(menu("tcp *:8443"))
    page.wait("//*[@role='menuitem' and normalize-space()='Remove']")
    looks.are_fine()
    page.press(ESCAPE)
    for listens, action in (("tcp *:8443", "Remove"), ("tcp *:8022", "Close")):
        act(page, listens, action)
        page.wait(f"//footer{button(action)}")
        looks.are_fine()
        leave(page)

    host.run("rm", DROP_IN)
    host.portfwd("close", "neighbour")
    host.write(CONFIG, HEAD)
    host.portfwd("reload")
    page.wait(NOTHING)
    looks.are_fine()
    daemon.terminate()
    page.wait("//h1[contains(., 'does not answer')]")
    looks.are_fine()
    page.run("localStorage.clear()")
    server.stop()


def forms_look_well(page: Browser, looks: Looks) -> None:
    """See that of each kind of entry, also with something wrong in it."""
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


def test_the_page_and_its_place_in_the_menu_speak_german_too(shared_scene: Scene, page: Browser) -> None:
    host = shared_scene.host
    many = " ".join(f"{number}:80" for number in range(20000, 20020))
    there = entry("neighbour", "8004:81", "NEIGHBOUR4") + entry("shop", "8443:443", "192.168.122.99")
    shared_scene.daemon(there + entry("web", many, "WEB4"))
    with serving(host, SHELLS_PORT):
        show(page, SHELLS_PORT)
        page.wait("//h1[.='Port forwards']")
        page.run("document.cookie = 'CockpitLang=de-de; path=/'")
        show(page, SHELLS_PORT)
        page.wait("//h1[.='Portweiterleitungen']")
        # Reasons and remedies too, and what the daemon says besides is marked as English.
        assert page.texts("//*[@class='reason']") == ["libvirt kennt keinen solchen Gast"]
        # So is what PatternFly says to screen readers by itself.
        assert {"Aktionen für neighbour, tcp *:8004", "Vorige Seite", "Nächste Seite"} <= labels(page)
        assert "1 - 20 von 22" in page.text()
        page.write("//input[@aria-label='Nach Gast, Adresse oder Port filtern']", "8004")
        page.wait("//button[@aria-label='Filter leeren']")
        act(page, "tcp *:8004", "Erklären")
        page.wait(alert("danger", "Im Gast lauscht nichts auf diesem Port"))
        assert "nothing listens" in page.wait(f"{alert('danger', 'Im Gast')}//*[@lang='en']")
        assert "Schließen" in labels(page)
        assert [word for word in PATTERNFLYS_OWN if word in "\n".join([page.text(), *labels(page)])] == []
        page.open(f"http://{PUBLIC4}:{SHELLS_PORT}/kvm-portfwd")
        page.wait("//a[normalize-space()='Portweiterleitungen']")
        page.run("document.cookie = 'CockpitLang=; path=/; max-age=0'")


def labels(page: Browser) -> set[str]:
    """What a screen reader reads of what has no text."""
    return set(page.run("return Array.from(document.querySelectorAll('[aria-label]'), item => item.ariaLabel)"))


@on_one
def test_keys_alone_add_an_entry_and_remove_it(shared_scene: Scene, page: Browser) -> None:
    shared_scene.daemon("")
    show(page)
    page.wait(NOTHING)
    go_to(page, "Add")
    page.press(ENTER)
    page.wait("//footer")
    wait_until(lambda: page.run("return document.activeElement.id") == "entry-domain", "the first field has the focus")
    page.press(f"web{TAB}8006{TAB}80{ENTER}")
    done(page, "The entry was added")
    page.wait(row("tcp *:8006"))
    go_to(page, "Actions for web, tcp *:8006")
    page.press(ENTER)
    page.wait("//*[@role='menuitem' and normalize-space()='Remove']")
    go_to(page, "Remove", DOWN)
    page.press(ENTER)
    page.wait("//pre")
    go_to(page, "Remove")
    page.press(ENTER)
    done(page, "The entry was removed")
    page.wait(NOTHING)


@on_one
def test_a_thousand_forwards_are_there_soon_and_hold_nothing_up_as_they_change(
    shared_scene: Scene, page: Browser, tmp_path: Path
) -> None:
    """`PICTURES` names the directory in which what was measured is kept; docs/cockpit.md has such figures."""
    scene = shared_scene

    def forwards(guest: int, address: str) -> str:
        return entry("web", " ".join(f"{number}:{guest}" for number in range(20000, 21000)), address)

    scene.daemon(forwards(80, WEB4))
    with page.at_start((SOURCE / "tests/host/cockpit_figures.js").read_text(encoding="utf-8")):
        page.open("about:blank")
        before = page.processor_time()
        show(page)
        page.wait(row("tcp *:20000"))
        # What is drawn is a page of the table.
        assert len(page.texts("//tbody/tr")) == 20
        assert "of 1000" in page.wait("//*[contains(@class, 'pagination')]")
        wait_until(lambda: bool(page.run("return figures.shown")), "the table is painted")
        drawn = page.processor_time()
        page.run("figures.tasks.length = 0; figures.gap = 0")
        for round_ in range(1, 9):
            scene.host.write(CONFIG, HEAD + filled(forwards(80 + round_, WEB4)))
            scene.host.portfwd("reload")
        page.wait(row(f"{WEB4}:88"))
        assert page.texts(row(f"{WEB4}:80")) == []
        figures, followed = page.run("return figures"), page.processor_time()
        page.write("//input[@aria-label='Filter by guest, address or port']", "20999")
        page.wait(row("tcp *:20999"))
        assert len(page.texts("//tbody/tr")) == 1
    measured = {name: round(figures[name]) for name in ("painted", "shown", "gap")}
    measured["longest"] = round(max(figures["tasks"], default=0))
    measured |= {"drawing": round(1000 * (drawn - before)), "following": round(1000 * (followed - drawn))}
    Path(os.environ.get("PICTURES", tmp_path), "thousand.json").write_text(json.dumps(measured), encoding="utf-8")
    # By the clock, in milliseconds: with a load of 28 on two cores it was half of that at first, five eighths until the
    # table was there, and a fifth as it changed; with one of 3, a fifth, a ninth and a thirtieth.
    assert 0 < measured["painted"] < 1000
    assert measured["painted"] <= measured["shown"] < 4000
    assert max(measured["longest"], measured["gap"]) < 1000
    # In processor time, which other work hardly moves: a second to the table, and a quarter of one for each change.
    assert 0 < drawn - before < 1
    assert followed - drawn < 2
