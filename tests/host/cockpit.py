"""The page in Cockpit as tests see and use it: Cockpit itself, what is clicked on, and how it looks."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.lab.browser import Browser
from tests.lab.command import run
from tests.lab.computer import Computer
from tests.lab.host import PUBLIC4, SOURCE, Host
from tests.lab.place import Process, wait_until

PORT, MEMBERS_PORT, SHELLS_PORT = 9090, 9091, 9092
GROUP, GROUP_NUMBER, USER = "games", "60", "65534"
SOCKET = "/run/kvm-portfwd/control.sock"
DROP_IN = "/etc/portfwd.d/cockpit.toml"
NOTHING = "//h3[.='Nothing is forwarded yet']"
DIALOG = "//*[@role='dialog']"
# A narrow page is a long one: a picture of it has rows of each kind.
STYLES, WIDE, NARROW = ("light", "dark"), (1280, 900), (360, 1500)
TAB, ENTER, ESCAPE, DOWN = "\ue004", "\ue007", "\ue00c", "\ue015"


@contextmanager
def browsing(host: Host) -> Iterator[Browser]:
    """Run a browser outside, and Cockpit with the page for root and for a member of the group."""
    run([str(SOURCE / "cockpit/build")], timeout=300)
    host.run("mkdir", "-p", "/usr/share/cockpit")
    host.run("ln", "-sfn", f"{SOURCE}/cockpit/dist", "/usr/share/cockpit/kvm-portfwd")
    with serving(host, PORT), serving(host, MEMBERS_PORT, as_member=True):
        browser = Browser.start(host.outside)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def serving(host: Host, port: int, *, as_member: bool = False) -> Iterator[Process]:
    """Run Cockpit for root, or for a member of the group, without a login."""
    words = ["/usr/lib/cockpit/cockpit-ws", "--no-tls", "-a", PUBLIC4, "-p", str(port)]
    member = ["setpriv", "--reuid", USER, "--regid", USER, "--groups", GROUP_NUMBER, "env", "HOME=/tmp"]
    server = host.popen(*(member if as_member else []), *words, "--local-session=cockpit-bridge")
    wait_until(lambda: accepts(host, port), server.text)
    yield server
    server.stop()


@contextmanager
def without_socket(computer: Computer) -> Iterator[None]:
    """Have something in the place of the daemon's socket that it cannot take away."""
    computer.run("sh", "-c", f"rm {SOCKET} && mkdir -p {SOCKET}/not-empty")
    yield
    computer.run("rm", "-r", SOCKET)


def accepts(host: Host, port: int) -> bool:
    """Whether a server is there; it says nothing by itself, and closes no connection."""
    try:
        host.outside.connect(PUBLIC4, port).close()
    except OSError:
        return False
    return True


def routed(network: str, addresses: str) -> str:
    """One `[[route]]`."""
    return f'[[route]]\nnetwork = "{network}"\naddresses = ["{addresses}"]\n'


def show(page: Browser, port: int = PORT, width: int = 1280) -> None:
    """Open the page alone, without the shell around it."""
    page.resize(width, 900)
    page.open(f"http://{PUBLIC4}:{port}/cockpit/@localhost/kvm-portfwd/index.html")


def button(text: str) -> str:
    """A button that can be clicked."""
    return f"//button[normalize-space()='{text}' and not(@disabled)]"


def row(text: str) -> str:
    """A row of the table."""
    return f"//tbody/tr[contains(., '{text}')]"


def field(name: str) -> str:
    """A field of the form."""
    return f"//*[@id='entry-{name}']"


def form_group(name: str) -> str:
    """A field of the form with its label, what it offers and what is wrong with it."""
    return f"{field(name)}/ancestor::*[contains(@class, 'form__group')][1]"


def menu(listens: str) -> str:
    """The button that opens the menu of a row, in every language."""
    return f"{row(listens)}/td[last()]//button"


def alert(kind: str, text: str) -> str:
    """A message: danger, warning or success."""
    return f"//*[contains(@class, 'pf-m-{kind}') and contains(., '{text}')]"


def fill(page: Browser, **fields: str) -> None:
    """Write into fields of the form."""
    for name, text in fields.items():
        page.write(field(name.replace("_", "-")), text)


def forwarded(page: Browser, domain: str, host: str, guest: str = "", address: str = "") -> None:
    """Fill in the form for a port, and send it."""
    page.click(button("Add"))
    fill(page, domain=domain, host_0=host, guest_0=guest)
    if address:
        page.click(button("More"))
        fill(page, address=address)
    send(page, "Add")


def send(page: Browser, text: str) -> None:
    """Click on the button at the bottom of a dialog."""
    page.click(f"//footer{button(text)}")


def done(page: Browser, text: str) -> None:
    """Wait until the dialog has gone, and the page says so."""
    page.wait_gone("//footer")
    page.wait(f"//*[contains(., '{text}')]")


def act(page: Browser, listens: str, action: str) -> None:
    """Choose from the menu of a row."""
    page.click(menu(listens))
    page.click(f"//*[@role='menuitem' and normalize-space()='{action}']")


def go_to(page: Browser, text: str, key: str = TAB) -> None:
    """Press a key until a button or an item of a menu has the focus."""
    for _ in range(30):
        if page.run("return document.activeElement.innerText || document.activeElement.ariaLabel") == text:
            return
        page.press(key)
    raise AssertionError(f"this key never leads to {text!r}; there is:\n{page.text()}")


def leave(page: Browser) -> None:
    """Close a dialog."""
    page.press(ESCAPE)
    page.wait_gone(DIALOG)


# The choice of the style as Cockpit's shell makes it, and the end of what moves: nothing is to be seen half faded.
_STYLE = """
    localStorage.setItem("shell:style", arguments[0]);
    window.dispatchEvent(new StorageEvent("storage", { key: "shell:style" }));
    for (const item of document.getAnimations())
        if (Number.isFinite(item.effect.getComputedTiming().endTime))
            item.finish();
"""
_AXE = """
    const { violations, passes } = await axe.run(document, arguments[0]);
    return JSON.stringify({ violations, passes: passes.length });
"""


@dataclass(frozen=True, slots=True)
class Looks:
    """How the page looks in light and dark, wide and narrow, also to axe; `pictures` is where pictures are kept."""

    page: Browser
    pictures: Path

    def are_fine(self, name: str = "") -> None:
        """See that nothing is too wide, and that axe finds nothing serious; with a name, keep pictures."""
        for width, height in (WIDE, NARROW):
            self.page.resize(width, height)
            for style in STYLES:
                self.page.run(_STYLE, style)
                if name:
                    self.page.picture(self.pictures / f"{name}-{style}-{width}.png")
                assert self.page.run("return document.documentElement.scrollWidth") <= width
                # All that the other style changes is colours.
                assert self.serious({"runOnly": ["color-contrast"]} if style == "dark" else {}) == []
        self.page.resize(*WIDE)

    def serious(self, options: dict[str, list[str]]) -> list[str]:
        """Give what axe finds."""
        if not self.page.run("return Boolean(window.axe)"):
            self.page.run(_axe())
        found = json.loads(self.page.run(_AXE, options))
        assert found["passes"] > 0
        violations = [item for item in found["violations"] if item["impact"] in ("serious", "critical")]
        return [f"{item['id']}: {node['html']}" for item in violations for node in item["nodes"]]


@cache
def _axe() -> str:
    return (SOURCE / "cockpit/node_modules/axe-core/axe.min.js").read_text(encoding="utf-8")
