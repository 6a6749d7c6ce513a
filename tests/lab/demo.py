"""What kvm-portfwd does, shown in a minute on a real host in namespaces; `sudo scripts/demo [--keep]` runs this."""

import argparse
import sys
import time
from collections.abc import Callable

from tests.lab.command import LabError
from tests.lab.daemon import CONFIG, Daemon
from tests.lab.domain import Link
from tests.lab.host import CLIENT4, PUBLIC4, Host
from tests.lab.lxc import LxcGuest
from tests.lab.place import wait_until
from tests.lab.release import own_flavour

_URL = f"http://{PUBLIC4}:8000/"
_PAGE = f"web1 {CLIENT4}"
_CONFIG = """\
[daemon]
libvirt = ["lxc:///system"]

[[forward]]
domain = "web1"
ports  = ["8000:80"]
"""


def _say(text: str = "") -> None:
    print(text, flush=True)  # noqa: T201  showing is what a demonstration is for


def _indent(text: str) -> str:
    return "\n".join(f"        {line}" for line in text.splitlines())


class Demo:
    """The steps, in order, on one booted host."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._guest = LxcGuest(host, "web1", Link("default", dhcp=True))
        self._daemon: Daemon | None = None

    def steps(self) -> dict[str, Callable[[], str]]:
        """What each step is called, and what does it; it returns what to show below its line."""
        return {
            "libvirtd runs, with its network and its own firewall rules": self._libvirt,
            "the guest web1 is up, has its address by DHCP, and serves a page": self._start_guest,
            f"without the daemon, {_URL} does not answer a client outside": self._closed,
            "the daemon is ready with this configuration": self._start_daemon,
            f"the client outside, {CLIENT4}, has the page, and the guest sees its address": self._fetch,
            "nft flush ruleset wipes every rule of the host; the page is back by itself": self._flush,
            "the guest is stopped, and its port is closed": self._stop_guest,
            "the daemon says what it did and why": self.log,
        }

    def _libvirt(self) -> str:
        self._host.libvirt.start()
        self._host.libvirt.define_network("default", "192.168.122.0/24", dhcp=True)
        return self._host.run("libvirtd", "--version").stdout

    def _start_guest(self) -> str:
        self._guest.start()
        return f"web1 has {self._guest.lease()}"

    def _closed(self) -> str:
        answer = self._host.outside.fetch(_URL)
        if answer.answered:
            raise LabError(f"it answered: {answer.text}")
        return str(answer.outcome)

    def _start_daemon(self) -> str:
        self._daemon = self._host.daemon(_CONFIG)
        return _CONFIG

    def _fetch(self) -> str:
        wait_until(self._page_is_there, f"{_URL} answers {_PAGE!r}")
        return f"{_URL} → {_PAGE}"

    def _flush(self) -> str:
        self._host.run("nft", "flush", "ruleset")
        begin = time.monotonic()
        wait_until(self._page_is_there, "the page is back", timeout=15)
        return f"back after {time.monotonic() - begin:.2f} s"

    def _stop_guest(self) -> str:
        self._guest.stop()
        wait_until(lambda: not self._host.outside.fetch(_URL, timeout=0.5).answered, "the port is closed")
        wait_until(lambda: "8000" not in self._host.own_rules(), "the rule is gone")
        if self._daemon is not None:
            self._daemon.wait_log("^removed web1: ")
        return str(self._host.outside.fetch(_URL).outcome)

    def log(self) -> str:
        """Everything the daemon printed so far."""
        return "\n".join(line.text for line in self._daemon.log_lines()) if self._daemon else ""

    def _page_is_there(self) -> bool:
        return self._host.outside.fetch(_URL, timeout=0.5).text == _PAGE

    def keep(self) -> None:
        """Leave it up, the guest running again, until the user presses Enter."""
        self._guest.start()
        _say(f"\nThe host runs. Its configuration is {CONFIG}. To look around:")
        _say(f"    on the host:      {self._host.enter_command()}")
        _say(f"    outside of it:    {self._host.enter_command('outside')}")
        _say(f"    from outside:     {self._host.enter_command('outside').removesuffix('bash')}curl {_URL}")
        _say("Press Enter (or Ctrl-C) to take everything down.")
        sys.stdin.readline()


def _run(demo: Demo) -> bool:
    for number, (title, step) in enumerate(demo.steps().items(), start=1):
        try:
            shown = step()
        except Exception as error:  # noqa: BLE001  whatever went wrong, the step failed and says so
            _say(f"FAILED {number}. {title}\n{_indent(str(error))}\n{_indent(demo.log())}")
            return False
        _say(f"ok  {number}. {title}\n{_indent(shown)}")
    return True


def main() -> int:
    """Run the demonstration; 0 if every step succeeded."""
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave the host up at the end, to look around")
    keep: bool = parser.parse_args().keep
    flavour = own_flavour()
    _say(f"A {flavour.release.directory} host in namespaces of its own; this machine's network is not touched.")
    try:
        with Host.boot(flavour) as host:
            demo = Demo(host)
            succeeded = _run(demo)
            if keep and succeeded:
                demo.keep()
    except KeyboardInterrupt:
        succeeded = False
    _say("\nEverything is taken down.")
    return 0 if succeeded else 1


if __name__ == "__main__":
    sys.exit(main())
