"""Cockpit as Debian 12 and 13 have it, on a whole machine: a new user logs in by password, and makes a guest reachable.

The page is opened where Cockpit's menu leads to it, over TLS, and changes take Cockpit's own administrative access.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host.cockpit import NOTHING, act, button, done, fill, form_group, row, send, without_socket
from tests.lab.browser import Browser
from tests.lab.command import run
from tests.lab.computer import PUBLIC4, SOURCE
from tests.lab.domain import Link
from tests.lab.machine import UNIT, Machine
from tests.lab.place import wait_until
from tests.lab.qemu import QemuGuest
from tests.lab.release import LibvirtFirewall

pytestmark = pytest.mark.on(LibvirtFirewall.IPTABLES, LibvirtFirewall.NFTABLES)
ADMIN, MEMBER, PASSWORD = "alex", "kim", "correct horse 8"
FRAME = "//iframe[contains(@src, 'kvm-portfwd')]"
URL = f"https://{PUBLIC4}:9090"
SITE = f"http://{PUBLIC4}:8000/"


@pytest.fixture(scope="module")
def cockpit(module_machine: Machine, package: Path) -> Iterator[Machine]:
    """A machine with Cockpit and both packages as they are installed, and `web1`, which takes its address by DHCP."""
    machine = module_machine
    machine.libvirt.define_network("default", "192.168.122.0/24", dhcp=True)
    guest = QemuGuest(machine, "web1", Link("default", dhcp=True)).start()
    run([SOURCE / "scripts/package", "cockpit"], timeout=300)
    (page,) = (SOURCE / "dist").glob("cockpit-kvm-portfwd_*.deb")
    machine.install(package)
    machine.install(page)
    for user, group in ((ADMIN, "sudo"), (MEMBER, "libvirt")):
        machine.run("useradd", "--create-home", "--shell=/bin/bash", f"--groups={group}", user)
        machine.run("chpasswd", stdin=f"{user}:{PASSWORD}\n")
    machine.systemctl("enable", "--now", "cockpit.socket")
    yield machine
    machine.systemctl("disable", "--now", "cockpit.socket")
    guest.remove()
    machine.libvirt.remove_network("default")


@pytest.fixture
def browser(cockpit: Machine) -> Iterator[Browser]:
    """A browser that has not been there yet."""
    found = Browser.start(cockpit.outside)
    found.resize(1280, 900)
    yield found
    found.close()


def log_in(browser: Browser, user: str) -> None:
    browser.open(URL)
    browser.write("//*[@id='login-user-input']", user)
    browser.write("//*[@id='login-password-input']", PASSWORD)
    browser.click("//*[@id='login-button']")


def open_page(browser: Browser) -> None:
    browser.click("//a[normalize-space()='Port forwards']")
    browser.enter(FRAME)


def become_administrator(browser: Browser) -> None:
    browser.leave()
    browser.click("//*[@id='super-user-indicator']//button | //button[@id='super-user-indicator']")
    browser.write("//div[@role='dialog']//input[@type='password']", PASSWORD)
    browser.click("//div[@role='dialog']//button[normalize-space()='Authenticate']")
    browser.wait_gone("//div[@role='dialog']")
    browser.wait("//button[normalize-space()='Administrative access']")


def test_a_new_user_makes_a_guest_answer(cockpit: Machine, browser: Browser) -> None:
    log_in(browser, ADMIN)
    open_page(browser)
    browser.wait("//h1[.='You may not see the port forwards']")
    become_administrator(browser)
    browser.enter(FRAME)
    browser.wait(NOTHING)
    browser.click(button("Add a forward"))
    browser.click(button("web1 (running)"))
    fill(browser, host_0="8000", guest_0="80")
    send(browser, "Add")
    done(browser, "The entry was added")
    wait_until(lambda: cockpit.outside.fetch(SITE).answered, "the guest answers")
    browser.wait("//tbody//*[normalize-space()='Active']")

    # What the guest has by DHCP is offered as its address.
    act(browser, "tcp *:8000", "Change")
    browser.click(button("More"))
    browser.click(f"{form_group('address')}//button[starts-with(., '192.168.122.')]")
    send(browser, "Save")
    done(browser, "The entry was changed")
    wait_until(lambda: cockpit.outside.fetch(SITE).answered, "the guest answers at that address")

    act(browser, "tcp *:8000", "History")
    assert "tcp *:8000" in browser.wait("//li[contains(., 'web1')]")
    browser.press("\ue00c")
    browser.wait_gone("//*[@role='dialog']")

    # The service ends, and then only its socket is gone.
    cockpit.systemctl("stop", UNIT)
    browser.click(button("Start the service"))
    browser.wait(row("tcp *:8000"))
    with without_socket(cockpit):
        browser.wait("//*[contains(., 'which it makes again by itself')]")
        assert browser.texts("//button") == []
    browser.wait(row("tcp *:8000"))

    act(browser, "tcp *:8000", "Remove")
    send(browser, "Remove")
    done(browser, "The entry was removed")
    wait_until(lambda: not cockpit.outside.fetch(SITE).answered, "the guest answers no more")


def test_a_member_of_the_group_sees_also_in_german_and_cannot_change(cockpit: Machine, browser: Browser) -> None:
    cockpit.write("/etc/portfwd.d/cockpit.toml", '[[forward]]\ndomain = "web1"\nports = ["8000:80"]\n')
    cockpit.systemctl("restart", UNIT)
    log_in(browser, MEMBER)
    open_page(browser)
    browser.wait(row("tcp *:8000"))
    assert browser.texts(button("Add")) == []
    browser.leave()
    browser.run("document.cookie = 'CockpitLang=de-de; path=/; secure'")
    browser.open(URL)
    browser.click("//a[normalize-space()='Portweiterleitungen']")
    browser.enter(FRAME)
    browser.wait("//h1[.='Portweiterleitungen']")
    browser.wait(f"{row('tcp *:8000')}//*[normalize-space()='Aktiv']")
    cockpit.run("rm", "/etc/portfwd.d/cockpit.toml")
    cockpit.run("kvm-portfwd", "reload")
