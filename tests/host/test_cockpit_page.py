"""The page in Cockpit: in another language, by keys alone, for people who cannot see, and with many forwards.

With Cockpit 337 of Debian 13.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host.cockpit import (
    DOWN,
    ENTER,
    ESCAPE,
    NOTHING,
    SHELLS_PORT,
    TAB,
    act,
    alert,
    browsing,
    button,
    done,
    go_to,
    row,
    serving,
    show,
)
from tests.host.conftest import HEAD, NEIGHBOUR4, WEB4, Scene, entry, filled
from tests.lab.browser import Browser
from tests.lab.computer import SOURCE
from tests.lab.daemon import CONFIG
from tests.lab.host import CLIENT4, PUBLIC4, Host
from tests.lab.place import wait_until
from tests.lab.release import LibvirtFirewall

pytestmark = pytest.mark.on(LibvirtFirewall.NFTABLES)
MAIL4 = "198.51.100.8"


@pytest.fixture(scope="module")
def page(module_host: Host) -> Iterator[Browser]:
    """A browser, and Cockpit with the page."""
    with browsing(module_host) as browser:
        yield browser


def test_the_page_and_its_place_in_the_menu_speak_german_too(shared_scene: Scene, page: Browser) -> None:
    host = shared_scene.host
    shared_scene.daemon(entry("web", "8004:81", "WEB4") + entry("shop", "8443:443", "192.168.122.99"))
    with serving(host, SHELLS_PORT):
        show(page, SHELLS_PORT)
        page.wait("//h1[.='Port forwards']")
        page.run("document.cookie = 'CockpitLang=de-de; path=/'")
        show(page, SHELLS_PORT)
        page.wait("//h1[.='Portweiterleitungen']")
        # Reasons and remedies too, and what the daemon says besides is marked as English.
        assert page.texts("//*[@class='reason']") == ["libvirt kennt keinen solchen Gast"]
        act(page, "tcp *:8004", "Erklären")
        page.wait(alert("danger", "Im Gast lauscht nichts auf diesem Port"))
        assert "nothing listens" in page.wait(f"{alert('danger', 'Im Gast')}//*[@lang='en']")
        page.open(f"http://{PUBLIC4}:{SHELLS_PORT}/kvm-portfwd")
        page.wait("//a[normalize-space()='Portweiterleitungen']")
        page.run("document.cookie = 'CockpitLang=; path=/; max-age=0'")


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
    go_to(page, "Kebab toggle")
    page.press(ENTER)
    page.wait("//*[@role='menuitem' and normalize-space()='Remove']")
    go_to(page, "Remove", DOWN)
    page.press(ENTER)
    page.wait("//pre")
    go_to(page, "Remove")
    page.press(ENTER)
    done(page, "The entry was removed")
    page.wait(NOTHING)


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
    # In processor time, which other work hardly moves: a second to the table, and a quarter of one for each change.
    assert 0 < drawn - before < 1
    assert followed - drawn < 2


def test_what_helps_people_who_cannot_see_finds_nothing_serious(
    shared_scene: Scene, page: Browser, tmp_path: Path
) -> None:
    """By axe, in light and dark, wide and narrow; `PICTURES` names the directory in which pictures of that are kept."""
    scene = shared_scene
    waiting = entry("shop", "8443:443", "192.168.122.99")
    more = f'[[nat]]\ndomain = "neighbour"\naddress = "{NEIGHBOUR4}"\npublic = "{MAIL4}"\nassign = "eth0"\n'
    scene.daemon(entry("web", "8000:80 5353:53/udp", "WEB4") + entry("far", "9000", "FAR4") + waiting + more)
    pictures = Path(os.environ.get("PICTURES", tmp_path))
    axe = (SOURCE / "cockpit/node_modules/axe-core/axe.min.js").read_text(encoding="utf-8")
    scene.answers(lambda: scene.host.outside.fetch(f"http://{PUBLIC4}:8000/"), f"web {CLIENT4}")
    scene.wipe()
    show(page)
    page.wait("//dd[contains(., 'nft')]")
    for style in ("light", "dark"):
        for width in (1280, 360):
            page.run(f"localStorage.setItem('shell:style', '{style}')")
            show(page, width=width)
            page.wait(row("tcp *:8000"))
            page.picture(pictures / f"page-{style}-{width}.png")
            assert serious(page, axe) == []
            assert page.run("return document.documentElement.scrollWidth") <= width
            page.click(button("Add"))
            page.wait(button("web (running)"))
            page.picture(pictures / f"form-{style}-{width}.png")
            assert serious(page, axe) == []
            page.press(ESCAPE)
            page.wait_gone("//footer")
            page.click(f"{row('tcp *:8443')}{button('What helps?')}")
            page.wait("//ol/li[@class='no']")
            page.wait(f"//footer{button('Explain')}")
            page.picture(pictures / f"explain-{style}-{width}.png")
            assert serious(page, axe) == []
            page.press(ESCAPE)
    page.run("localStorage.clear()")


def serious(page: Browser, axe: str) -> list[str]:
    """Give what axe finds."""
    found = page.run(f"{axe}; return axe.run().then(found => JSON.stringify(found.violations))")
    violations = [item for item in json.loads(found) if item["impact"] in ("serious", "critical")]
    return [f"{item['id']}: {node['html']}" for item in violations for node in item["nodes"]]
