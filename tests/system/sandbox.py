"""One machine on which the daemon, as a service, has to do everything that it can do."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from tests.lab.domain import Link
from tests.lab.lxc import LxcGuest
from tests.lab.machine import UNIT, Machine
from tests.lab.place import wait_until
from tests.lab.probe import Answer

CONFIG = "/etc/portfwd.toml"
TEXTFILE = "/var/lib/prometheus/node-exporter/kvm_portfwd.prom"
METRICS_PORT = 9750

WEB4, WEB6 = "192.168.122.10", "2001:db8:122::10"
MAIL4, MAIL6 = "198.51.100.8", "2001:db8::88"
PREFIX4, PREFIX6 = "203.0.113.64/29", "2001:db8:64::/64"
ROUTED4, ROUTED6 = "203.0.113.66", "2001:db8:64::66"

HEAD = '[daemon]\nlibvirt = ["lxc:///system"]\nlocalhost = true\n'
METRICS = f'[metrics]\ntextfile = "{TEXTFILE}"\nlisten = "0.0.0.0:{METRICS_PORT}"\n'
WEB = "".join(
    f"""
[[forward]]
domain = "web"
address = "{address}"
ports = ["8080:80", "5300:53/udp", "7000"]
"""
    for address in (WEB4, WEB6)
)
EVERYTHING = f"""{HEAD}{METRICS}{WEB}
[[nat]]
domain = "mail"
public = "{MAIL4}"
address = "192.168.122.25"
assign = "eth0"

[[nat]]
domain = "mail"
public = "{MAIL6}"
address = "2001:db8:122::25"
assign = "eth0"

[[route]]
network = "public"
addresses = ["{PREFIX4}", "{PREFIX6}"]
proxy = "eth0"

[[forward]]
domain = "leased"
ports = ["8081:80"]
"""


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A machine with the service in force; `web` has forwards, `mail` a public address, `routed` routed ones.

    `leased` waits for its address.
    """

    machine: Machine
    web: LxcGuest
    mail: LxcGuest
    routed: LxcGuest
    leased: LxcGuest

    def answers(self, probe: Callable[[], Answer], text: str) -> None:
        """Wait until a probe has this answer."""
        wait_until(lambda: probe().text == text, lambda: f"the answer {text!r}, not {probe()}")

    def says(self, text: str, *words: str) -> None:
        """Wait until the service's journal has a line with this text."""
        wait_until(lambda: text in self.lines(*words), lambda: f"the line {text!r} in\n{self.lines(*words)}")

    def lines(self, *words: str) -> str:
        """What the service and systemd wrote of it to the journal."""
        return "\n".join(entry["MESSAGE"] for entry in self.machine.journal(f"--unit={UNIT}", *words))

    def configure(self, text: str) -> None:
        """Have another configuration in force."""
        self.machine.write(CONFIG, text)
        self.machine.run("kvm-portfwd", "reload")

    @contextmanager
    def drop_in(self, *lines: str) -> Iterator[None]:
        """Run the service with more lines in its section, as `systemctl edit` would add them."""
        path = f"/etc/systemd/system/{UNIT}.d/test.conf"
        self.machine.write(path, "\n".join(["[Service]", *lines, ""]))
        self._restart()
        try:
            yield
        finally:
            self.machine.run("rm", path)
            self._restart()

    def _restart(self) -> None:
        self.machine.systemctl("daemon-reload")
        self.machine.systemctl("restart", UNIT)


@contextmanager
def guests_on(machine: Machine) -> Iterator[Sandbox]:
    """Make networks, guests and the way to them; who may collect metrics from the machine's files is there too."""
    with ExitStack() as at_end:
        for name, third, is_leased in (("default", 122, False), ("public", 130, False), ("dynamic", 131, True)):
            machine.libvirt.define_network(name, f"192.168.{third}.0/24", f"2001:db8:{third}::/64", dhcp=is_leased)
            at_end.callback(machine.libvirt.remove_network, name)
        made = {
            "web": Link("default", (f"{WEB4}/24", f"{WEB6}/64")),
            "mail": Link("default", ("192.168.122.25/24", "2001:db8:122::25/64")),
            "routed": Link("public", ("192.168.130.10/24",)),
            "leased": Link("dynamic", ()),
        }
        guests = {name: LxcGuest(machine, name, link) for name, link in made.items()}
        for guest in guests.values():
            at_end.callback(guest.remove)
            guest.start()
        for address in (f"{ROUTED4}/32", f"{ROUTED6}/64"):
            guests["routed"].run("ip", "address", "add", address, "dev", "eth0")
        for prefix in (PREFIX4, PREFIX6):
            machine.outside.run(["ip", "route", "replace", prefix, "dev", "eth0"])
        yield Sandbox(machine, **guests)
