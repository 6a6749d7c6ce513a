"""The page in Cockpit, by clicking in a real browser, and what a client outside then gets."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.host.conftest import HEAD, WEB4, Scene, entry
from tests.lab.browser import Browser
from tests.lab.command import run
from tests.lab.computer import SOURCE
from tests.lab.host import CLIENT4, PUBLIC4, Host
from tests.lab.place import Process, wait_until
from tests.lab.release import LibvirtFirewall

# Cockpit 287, on Debian 12.
pytestmark = pytest.mark.on(LibvirtFirewall.IPTABLES)
PORT, MEMBERS_PORT = 9090, 9091
GROUP, GROUP_NUMBER, USER = "games", "60", "65534"
DROP_IN = "/etc/portfwd.d/cockpit.toml"
CONTROL = f'[control]\ngroup = "{GROUP}"\n'


@pytest.fixture(scope="module")
def page(module_host: Host) -> Iterator[Browser]:
    """A browser, and Cockpit with the page for root and for a member of the group, without a login."""
    run([str(SOURCE / "cockpit/build")], timeout=300)
    module_host.run("mkdir", "-p", "/usr/share/cockpit")
    module_host.run("ln", "-sfn", f"{SOURCE}/cockpit/dist", "/usr/share/cockpit/kvm-portfwd")
    with serving(module_host, PORT), serving(module_host, MEMBERS_PORT, as_member=True):
        browser = Browser.start(module_host.outside)
        yield browser
        browser.close()


@contextmanager
def serving(host: Host, port: int, *, as_member: bool = False) -> Iterator[Process]:
    words = [
        "/usr/lib/cockpit/cockpit-ws",
        "--no-tls",
        "-a",
        PUBLIC4,
        "-p",
        str(port),
        "--local-session=cockpit-bridge",
    ]
    member = ["setpriv", "--reuid", USER, "--regid", USER, "--groups", GROUP_NUMBER, "env", "HOME=/tmp"]
    server = host.popen(*(member if as_member else []), *words)
    wait_until(lambda: accepts(host, port), server.text)
    yield server
    server.stop()


def accepts(host: Host, port: int) -> bool:
    """Whether a server is there; it says nothing by itself, and closes no connection."""
    try:
        host.outside.connect(PUBLIC4, port).close()
    except OSError:
        return False
    return True


def show(page: Browser, port: int = PORT) -> None:
    page.resize(1280, 900)
    page.open(f"http://{PUBLIC4}:{port}/cockpit/@localhost/kvm-portfwd/index.html")


def button(text: str) -> str:
    return f"//button[normalize-space()='{text}' and not(@disabled)]"


def row(text: str) -> str:
    return f"//tbody/tr[contains(., '{text}')]"


def field(name: str) -> str:
    return f"//*[@id='entry-{name}']"


def added(page: Browser, domain: str, ports: str, address: str = "") -> None:
    """Fill in the form, and send it."""
    page.click(button("Add"))
    page.write(field("domain"), domain)
    host, _, guest = ports.partition(":")
    page.write(field("host-0"), host)
    page.write(field("guest-0"), guest)
    if address:
        page.click(button("More"))
        page.write(field("address"), address)
    page.click(f"//footer{button('Add')}")


def done(page: Browser, text: str) -> None:
    page.wait_gone("//footer")
    page.wait(f"//*[contains(., '{text}')]")


def act(page: Browser, listens: str, action: str) -> None:
    page.click(f"{row(listens)}//button[@aria-label='Kebab toggle']")
    page.click(f"//*[@role='menuitem' and normalize-space()='{action}']")


def test_a_forward_is_added_changed_and_removed_by_clicking(shared_scene: Scene, page: Browser) -> None:
    scene, host = shared_scene, shared_scene.host
    scene.daemon("", HEAD + CONTROL)
    show(page)
    page.wait("//h3[.='Nothing is forwarded yet']")
    added(page, "web", "8000:80", WEB4)
    done(page, "The entry was added")
    page.wait(row("tcp *:8000"))
    scene.answers(lambda: host.outside.fetch(f"http://{PUBLIC4}:8000/"), f"web {CLIENT4}")

    act(page, "tcp *:8000", "Change")
    page.write(field("host-0"), "8001")
    page.click(f"//footer{button('Save')}")
    done(page, "The entry was changed")
    page.wait(row("tcp *:8001"))
    scene.answers(lambda: host.outside.fetch(f"http://{PUBLIC4}:8001/"), f"web {CLIENT4}")
    scene.refused(lambda: host.outside.fetch(f"http://{PUBLIC4}:8000/"))

    act(page, "tcp *:8001", "Remove")
    page.click(f"//footer{button('Remove')}")
    done(page, "The entry was removed")
    page.wait("//h3[.='Nothing is forwarded yet']")
    scene.refused(lambda: host.outside.fetch(f"http://{PUBLIC4}:8001/"))
    assert drop_ins(host) == []
    assert page.log() == []


def test_what_is_wrong_stands_beside_its_field_and_nothing_is_written(shared_scene: Scene, page: Browser) -> None:
    scene, host = shared_scene, shared_scene.host
    scene.daemon(entry("web", "8000:80", "WEB4"), HEAD)
    show(page)
    page.wait(row("tcp *:8000"))
    added(page, "neighbour", "70000")
    assert "70000" in page.wait("//*[@id='entry-ports-0-help']//*[contains(@class, 'pf-m-error')]")
    assert drop_ins(host) == []

    # The page itself is a process that has a port.
    page.write(field("host-0"), str(PORT))
    page.click(f"//footer{button('Add')}")
    assert "cockpit-ws" in page.wait("//*[contains(@class, 'pf-m-warning') and contains(., 'has this port already')]")
    assert drop_ins(host) == []

    # What is written meanwhile is not overwritten.
    page.write(field("host-0"), "8002")
    host.write(DROP_IN, "# by hand\n")
    page.click(f"//footer{button('Add')}")
    page.wait("//*[contains(., 'The file was changed meanwhile')]")
    assert host.run("cat", DROP_IN).stdout == "# by hand\n"
    host.run("rm", DROP_IN)


def drop_ins(host: Host) -> list[str]:
    return host.run("find", "/etc/portfwd.d", "-type", "f", check=False).stdout.split()


def test_ports_are_open_for_a_while_and_closed_before(shared_scene: Scene, page: Browser) -> None:
    shared_scene.daemon("", HEAD)
    show(page)
    page.click(button("Add"))
    page.write(field("domain"), "web")
    page.write(field("host-0"), "8003")
    page.write(field("guest-0"), "80")
    page.choose(field("seconds"), "Eight hours")
    page.click(f"//footer{button('Add')}")
    done(page, "The ports are open for a while")
    assert "7 h 59 min left" in page.wait(row("tcp *:8003")) or "8 h 0 min left" in page.wait(row("tcp *:8003"))
    act(page, "tcp *:8003", "Close")
    page.click(f"//footer{button('Close')}")
    done(page, "The port is closed")
    page.wait("//h3[.='Nothing is forwarded yet']")


def test_why_a_connection_fails_is_explained(shared_scene: Scene, page: Browser) -> None:
    scene = shared_scene
    scene.daemon(entry("web", "8000:80 8004:81", "WEB4"), HEAD)
    show(page)
    page.wait(row("tcp *:8004"))
    act(page, "tcp *:8004", "Explain")
    assert "81" in page.wait("//ol/li[@class='no']")
    assert "nothing listens on tcp port 81" in page.wait("//*[contains(@class, 'pf-m-danger')]")
    page.write("//*[@id='explain-to']", ":8000")
    page.click(f"//footer{button('Explain')}")
    page.wait("//*[contains(@class, 'pf-m-success') and contains(., 'It works')]")
    page.write("//*[@id='explain-to']", "nonsense")
    page.click(f"//footer{button('Explain')}")
    assert "write one such as" in page.wait("//*[contains(@class, 'pf-m-danger')]")


def test_a_member_of_the_group_sees_and_cannot_change(shared_scene: Scene, page: Browser) -> None:
    shared_scene.daemon(entry("web", "8000:80", "WEB4"), HEAD + CONTROL)
    show(page, MEMBERS_PORT)
    page.wait(row("tcp *:8000"))
    assert page.texts(button("Add")) == []
    assert len(page.texts("//button[normalize-space()='Add']")) == 1
    act(page, "tcp *:8000", "Explain")
    page.wait("//*[contains(@class, 'pf-m-success') and contains(., 'It works')]")


def test_the_page_follows_the_daemon_as_it_ends_and_comes_back(shared_scene: Scene, page: Browser) -> None:
    scene = shared_scene
    daemon = scene.daemon(entry("web", "8000:80", "WEB4"), HEAD)
    show(page)
    page.wait(row("tcp *:8000"))
    daemon.terminate()
    page.wait("//h1[contains(., 'does not answer')]")
    scene.daemon(entry("web", "8000:80", "WEB4"), HEAD)
    page.wait(row("tcp *:8000"))
    scene.wipe()
    page.wait("//dd[contains(., 'nft')]")
    scene.host.libvirt.stop()
    page.wait("//*[contains(@class, 'pf-m-warning') and contains(., 'libvirt does not answer')]")
    scene.host.libvirt.start()
    page.wait_gone("//*[contains(., 'libvirt does not answer')]")


def test_the_page_and_its_place_in_the_menu_speak_german_too(shared_scene: Scene, page: Browser) -> None:
    shared_scene.daemon("", HEAD)
    show(page)
    page.wait("//h1[.='Port forwards']")
    page.run("document.cookie = 'CockpitLang=de-de; path=/'")
    show(page)
    page.wait("//h1[.='Portweiterleitungen']")
    page.open(f"http://{PUBLIC4}:{PORT}/kvm-portfwd")
    page.wait("//a[normalize-space()='Portweiterleitungen']")
    page.run("document.cookie = 'CockpitLang=; path=/; max-age=0'")


def test_what_helps_people_who_cannot_see_finds_nothing_serious(
    shared_scene: Scene, page: Browser, tmp_path: Path
) -> None:
    """By axe, in light and dark, wide and narrow; `PICTURES` names the directory in which pictures of that are kept."""
    scene = shared_scene
    waiting = entry("shop", "8443:443", "192.168.122.99")
    scene.daemon(entry("web", "8000:80 5353:53/udp", "WEB4") + entry("far", "9000", "FAR4") + waiting, HEAD)
    pictures = Path(os.environ.get("PICTURES", tmp_path))
    axe = (SOURCE / "cockpit/node_modules/axe-core/axe.min.js").read_text(encoding="utf-8")
    scene.answers(lambda: scene.host.outside.fetch(f"http://{PUBLIC4}:8000/"), f"web {CLIENT4}")
    scene.wipe()
    show(page)
    page.wait("//dd[contains(., 'nft')]")
    for style in ("light", "dark"):
        for width in (1280, 360):
            page.run(f"localStorage.setItem('shell:style', '{style}')")
            show(page)
            page.resize(width, 900)
            page.wait(row("tcp *:8000"))
            page.picture(pictures / f"page-{style}-{width}.png")
            assert serious(page, axe) == []
            assert page.run("return document.documentElement.scrollWidth") <= width
            page.click(button("Add"))
            page.write(field("domain"), "shop")
            page.picture(pictures / f"form-{style}-{width}.png")
            assert serious(page, axe) == []
            page.press("\ue00c")
            page.wait_gone("//footer")
            act(page, "tcp *:8443", "Explain")
            page.wait("//ol/li[@class='no']")
            page.picture(pictures / f"explain-{style}-{width}.png")
            assert serious(page, axe) == []
    page.run("localStorage.clear()")


def serious(page: Browser, axe: str) -> list[str]:
    """Give what axe finds."""
    found = page.run(f"{axe}; return axe.run().then(found => JSON.stringify(found.violations))")
    violations = [item for item in json.loads(found) if item["impact"] in ("serious", "critical")]
    return [f"{item['id']}: {node['html']}" for item in violations for node in item["nodes"]]
