"""A real browser in the lab: Chromium without a window, driven through WebDriver (https://www.w3.org/TR/webdriver2/).

`chromedriver` and the browser are this machine's, whatever Debian the host is, in the network outside it. They have a
process namespace of their own, with which all of them end, and which ends with us. WebDriver is JSON over HTTP, of
which little is needed; a library would want a process in that network namespace, and here a socket there is enough.
"""

import base64
import http.client
import json
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

from tests.lab.command import LabError
from tests.lab.netns import open_socket
from tests.lab.place import Entered, Place, Process, wait_until

_PORT = 9515
# The key under which WebDriver names an element, section 12.1.
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
_ARGUMENTS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"),
    *("--disable-component-update", "--no-first-run"),
)
_POLL_S = 0.05


class Browser:
    """One window. Elements are named by XPath; what is not there yet is waited for."""

    def __init__(self, place: Place, driver: Process, language: str = "en-US") -> None:
        self._place, self._driver = place, driver
        options = {"args": [*_ARGUMENTS, f"--lang={language}", f"--accept-lang={language}"]}
        # Cockpit makes its own certificate.
        wanted = {"alwaysMatch": {"browserName": "chrome", "acceptInsecureCerts": True, "goog:chromeOptions": options}}
        self._session = "/session"
        self._session = f"/session/{self._ask('POST', '', {'capabilities': wanted})['sessionId']}"

    @classmethod
    def start(cls, place: Place) -> Self:
        """Start one outside the host."""
        outside = ["setpriv", "--pdeathsig", "KILL", "nsenter", f"--net={place.namespace}", "--"]
        apart = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        driver = Process(Entered([*outside, *apart, "chromedriver", f"--port={_PORT}"], os.environ), "chromedriver")
        driver.wait_line("started successfully")
        return cls(place, driver)

    def open(self, url: str) -> None:
        """Load a page."""
        self._ask("POST", "/url", {"url": url})

    def resize(self, width: int, height: int) -> None:
        """Give the page so many pixels, which may be fewer than a window can have."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._command("Emulation.setDeviceMetricsOverride", size)

    @contextmanager
    def at_start(self, script: str) -> Iterator[None]:
        """Run a script in each page that is opened meanwhile, before its own."""
        added = self._command("Page.addScriptToEvaluateOnNewDocument", {"source": script})
        try:
            yield
        finally:
            self._command("Page.removeScriptToEvaluateOnNewDocument", added)

    def processor_time(self) -> float:
        """Give the seconds of processor time that the page's own thread has used; of a new page from its start on."""
        self._command("Performance.enable", {"timeDomain": "threadTicks"})
        metrics = self._command("Performance.getMetrics", {})["metrics"]
        return float(next(metric["value"] for metric in metrics if metric["name"] == "TaskDuration"))

    def enter(self, path: str) -> None:
        """Be in a frame of the page from now on, until `leave`."""

        def is_in() -> bool:
            try:
                self._ask("POST", "/frame", {"id": self._ask("POST", "/element", {"using": "xpath", "value": path})})
            except LabError:
                return False
            return True

        wait_until(is_in, lambda: f"the frame {path}; there is:\n{self.text()}", interval=_POLL_S)

    def leave(self) -> None:
        """Be in the page itself again."""
        self._ask("POST", "/frame", {"id": None})

    def run(self, script: str, *arguments: object) -> Any:
        """Run JavaScript in the page, and give what it returns or promises."""
        body = (
            "const words = Array.from(arguments), done = words.pop();"
            f"(async function () {{ {script} }}).apply(null, words).then(done, error => done(`${{error}}`))"
        )
        return self._ask("POST", "/execute/async", {"script": body, "args": list(arguments)})

    def click(self, path: str) -> None:
        """Click on what can be clicked on, as a user does: nothing may cover it."""
        self._do(path, "click", {})

    def write(self, path: str, text: str) -> None:
        """Replace what a field holds."""
        self._do(path, "clear", {})
        self._do(path, "value", {"text": text})

    def choose(self, path: str, text: str) -> None:
        """Choose from a list by what it shows."""
        self.click(f"{path}/option[normalize-space()='{text}']")

    def press(self, keys: str) -> None:
        """Press keys, wherever the focus is."""
        pressed = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self._ask("POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": pressed}]})

    def wait(self, path: str) -> str:
        """Wait until an element is seen, and give its text."""
        wait_until(lambda: bool(self.texts(path)), lambda: f"{path}; there is:\n{self.text()}", interval=_POLL_S)
        return self.texts(path)[0]

    def wait_gone(self, path: str) -> None:
        """Wait until there is no such element."""
        wait_until(lambda: not self.texts(path), lambda: f"no {path}; there is:\n{self.text()}", interval=_POLL_S)

    def texts(self, path: str) -> list[str]:
        """Give the texts of all elements of a kind that are seen now."""
        script = """
            const found = document.evaluate(arguments[0], document, null, XPathResult.ORDERED_NODE_SNAPSHOT_TYPE);
            return Array.from({ length: found.snapshotLength }, (_, index) => found.snapshotItem(index))
                .filter(item => item.getClientRects().length).map(item => item.innerText);
        """
        body = f"return (function() {{ {script} }}).apply(null, arguments)"
        found: list[str] = self._ask("POST", "/execute/sync", {"script": body, "args": [path]})
        return found

    def is_in_view(self, path: str) -> bool:
        """Whether the middle of the last element of that path can be seen without scrolling."""
        script = """
            const found = document.evaluate(arguments[0], document, null, XPathResult.ORDERED_NODE_SNAPSHOT_TYPE);
            const item = found.snapshotItem(found.snapshotLength - 1);
            const { left, right, top, bottom } = item.getBoundingClientRect();
            return item.contains(document.elementFromPoint((left + right) / 2, (top + bottom) / 2));
        """
        return bool(self.run(script, path))

    def text(self) -> str:
        """Give all that the page shows."""
        return "\n".join(self.texts("//body"))

    def picture(self, file: Path) -> None:
        """Save what is seen as PNG."""
        file.write_bytes(base64.b64decode(self._ask("GET", "/screenshot")))

    def log(self) -> list[str]:
        """Give what the page wrote to its console since the last call, broken rules of its content policy too."""
        return [entry["message"] for entry in self._ask("POST", "/se/log", {"type": "browser"})]

    def close(self) -> None:
        """End it."""
        with ExitStack() as at_end:
            # The first of a process namespace: only this ends it, and all others with it.
            at_end.callback(self._driver.stop, signal.SIGKILL)
            self._ask("DELETE", "")

    def _command(self, name: str, parameters: dict[str, Any]) -> dict[str, Any]:
        """Give the browser a command of the DevTools protocol."""
        found: dict[str, Any] = self._ask("POST", "/goog/cdp/execute", {"cmd": name, "params": parameters})
        return found

    def _do(self, path: str, what: str, content: object) -> None:
        """Do something with an element, once it is there and nothing is in its way."""
        failures: list[str] = []

        def is_done() -> bool:
            try:
                found = self._ask("POST", "/element", {"using": "xpath", "value": path})[_ELEMENT]
                self._ask("POST", f"/element/{found}/{what}", content)
            except LabError as error:
                failures.append(str(error))
                return False
            return True

        wait_until(is_done, lambda: f"{what} {path}: {failures[-1]}; there is:\n{self.text()}", interval=_POLL_S)

    def _ask(self, method: str, path: str, content: object = None) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", _PORT)
        connection.sock = open_socket(self._place.namespace, socket.AF_INET, socket.SOCK_STREAM)
        connection.sock.connect(("127.0.0.1", _PORT))
        try:
            body = None if content is None else json.dumps(content)
            connection.request(method, self._session + path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            value = json.loads(answer.read())["value"]
        finally:
            connection.close()
        if answer.status != http.client.OK:
            raise LabError(f"{method} {path}: {value['error']}: {value['message'].splitlines()[0]}")
        return value
