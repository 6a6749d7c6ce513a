"""A host that something is wrong with: asking `explain` what it is, and doing to the letter what it says.

The sentence is read with a small table: commands in backquotes are run as they are, and changes of the configuration
and of the guest are made as they are written.
"""

import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.host.conftest import HEAD, WEB4, entry, filled
from tests.lab.daemon import CONFIG, Daemon
from tests.lab.host import PUBLIC4, Host
from tests.lab.lxc import LxcGuest
from tests.lab.place import wait_until
from tests.lab.probe import Answer

WEB = entry("web", "8000:80", "WEB4")
ASKED = f"{PUBLIC4}:8000"

# A port that is dropped in silence is known from an open one after this long.
_PATIENCE = 0.5

Deed = Callable[["Patient", "re.Match[str]"], None]


@dataclass
class Patient:
    """A host with guests and a daemon. What a test breaks, it mends at the end by what it put on `mend`."""

    host: Host
    web: LxcGuest
    neighbour: LxcGuest
    far: LxcGuest
    config: str = ""
    loaded: str = ""
    running: Daemon | None = None
    mend: ExitStack = field(default_factory=ExitStack)

    # --- the daemon ------------------------------------------------------------------------------------------------

    def write(self, entries: str, head: str = HEAD) -> None:
        """Write the configuration; the daemon is not notified."""
        self.config = filled(head + entries)
        self.host.write(CONFIG, self.config)

    def start(self, *, wait: bool = True) -> None:
        """Start the daemon, as the service would be."""
        self.running = self.host.daemon(self.config, wait=wait, forked=True)
        self.loaded = self.config

    def stop(self) -> None:
        """Stop the daemon; its rules stay."""
        if self.running is not None and self.running.process.running:
            self.running.terminate()
            self.running.close()
        self.running = None

    def kill(self) -> None:
        """End the daemon so that it cannot tidy up."""
        assert self.running is not None
        self.running.kill()
        self.running.close()
        self.running = None

    def command(self, *words: str, check: bool = True) -> str:
        """Run our program on the host."""
        if self.running is not None:
            # As a service manager would: the socket holds a few notifications only, then the daemon has to wait.
            self.running.told()
        if words == ("reload",):
            self.loaded = self.config
        return self.host.portfwd(*words, check=check).stdout

    def load(self, entries: str = WEB, head: str = HEAD) -> None:
        """Have the daemon, which is started if need be, run on this configuration."""
        if self.running is not None and self.config == self.loaded == filled(head + entries):
            return
        self.write(entries, head)
        if self.running is None:
            self.start()
        else:
            self.command("reload")

    # --- asking, and doing ---------------------------------------------------------------------------------------

    def fetch(self, address: str = PUBLIC4, port: int = 8000, source: str | None = None) -> Answer:
        """Ask for the page from outside."""
        name = f"[{address}]" if ":" in address else address
        return self.host.outside.fetch(f"http://{name}:{port}/", source=source, timeout=_PATIENCE)

    def explain(self, *words: str) -> Mapping[str, Any]:
        """What `explain` says, as programs read it."""
        found: Mapping[str, Any] = json.loads(self.command("explain", "--json", *words, check=False))
        return found

    def is_cured_of(self, cause: str, *words: str, probe: Callable[[], Answer] | None = None) -> Mapping[str, Any]:
        """Ask, do what the sentence says and nothing else, and see that it works then. The first answer is given."""
        probe = probe or self.fetch
        wait_until(lambda: not probe().answered, "it is broken")
        report = self.explain(*(words or (ASKED,)))
        assert report["cause"] == cause, report
        assert not report["works"]
        follow(self, report["sentence"])
        wait_until(lambda: probe().answered, f"it works after: {report['sentence']}")
        after = self.explain(*(words or (ASKED,)))
        assert after["works"], after
        return report

    def edit(self, change: Callable[[str], str], line: int | None = None) -> None:
        """Change the configuration, or of it one line and what follows."""
        lines = self.config.splitlines(keepends=True)
        start = 0 if line is None else line - 1
        changed = change("".join(lines[start:]))
        assert changed != "".join(lines[start:]), "the sentence says nothing that can be done"
        self.config = "".join(lines[:start]) + changed
        self.host.write(CONFIG, self.config)


def _put_into(key: str) -> Deed:
    def put(patient: Patient, said: re.Match[str]) -> None:
        word = said["what"]
        patient.edit(lambda text: re.sub(rf"{key} = \[", f"{key} = [{word}, ", text, count=1), int(said["line"]))

    return put


def _set_in_entry(patient: Patient, said: re.Match[str]) -> None:
    key = said["what"].split(" = ")[0]
    patient.edit(
        lambda text: re.sub(rf"^{key} = .*$", said["what"], text, count=1, flags=re.MULTILINE), int(said["line"])
    )


def _add_to_entry(patient: Patient, said: re.Match[str]) -> None:
    patient.edit(lambda text: text.replace("[[forward]]\n", f"[[forward]]\n{said['what']}\n", 1), int(said["line"]))


def _set_for_daemon(patient: Patient, said: re.Match[str]) -> None:
    patient.edit(lambda text: text.replace("[daemon]\n", f"[daemon]\n{said['what']}\n", 1))


def _write_own_address(patient: Patient, said: re.Match[str]) -> None:
    patient.edit(lambda text: text.replace(f'"{said["what"]}"', f'"{WEB4}"', 1), int(said["line"]))


def _write_suggestion(patient: Patient, said: re.Match[str]) -> None:
    patient.edit(lambda text: text.replace(said["what"], said["meant"], 1), int(said["line"]))


def _add_entry_of_ipv6(patient: Patient, _said: re.Match[str]) -> None:
    patient.edit(lambda text: text + filled(entry("web", "8000:80", "WEB6")))


def _serve(patient: Patient, said: re.Match[str]) -> None:
    patient.web.serve_tcp(int(said["port"]))


def _admit(patient: Patient, _said: re.Match[str]) -> None:
    patient.web.run("nft", "flush", "ruleset")


def _address_guest(patient: Patient, said: re.Match[str]) -> None:
    patient.web.run("ip", "address", "add", f"{said['what']}/24", "dev", "eth0")
    patient.web.run("ip", "route", "replace", "default", "via", "192.168.122.1")


_PLACE = r"\S+?:(?P<line>\d+)"
# What a sentence may ask for besides commands. It is done first, as it stands first.
_DEEDS: Mapping[str, Deed] = {
    rf"Add (?P<what>\"\S+\") to ports in {_PLACE}": _put_into("ports"),
    rf"Add (?P<what>\"\S+\") to sources in {_PLACE}": _put_into("sources"),
    r"Write (?P<what>gates = \[.*?\]) under \[daemon\] in ": _set_for_daemon,
    r"Write (?P<what>localhost = true) under \[daemon\] in ": _set_for_daemon,
    rf"[Ww]rite (?P<what>(domain|interface) = \"\S+\") in {_PLACE}": _set_in_entry,
    rf"Write (?P<what>masquerade = true) in {_PLACE}": _add_to_entry,
    rf"Write the guest's own address instead of (?P<what>\S+) in {_PLACE}": _write_own_address,
    rf'{_PLACE}: [^;]*unknown key "(?P<what>\w+)"; did you mean "(?P<meant>\w+)"\?': _write_suggestion,
    r"Write another \[\[forward\]\] with the guest's IPv6 address": _add_entry_of_ipv6,
    r"Start the service in the guest: nothing listens on tcp port (?P<port>\d+)": _serve,
    r"Have the guest's own firewall admit tcp port \d+": _admit,
    r"Give the guest the address (?P<what>[0-9.]+)": _address_guest,
    r"Let the guest take an address by DHCP": lambda patient, _: patient.far.take_lease(),
}


def follow(patient: Patient, sentence: str) -> None:
    """Do what a sentence says."""
    deeds = [(deed, said) for form, deed in _DEEDS.items() for said in [re.search(form, sentence)] if said]
    commands = re.findall(r"`([^`]+)`", sentence)
    assert deeds or commands, f"nothing to do in: {sentence}"
    for deed, said in deeds:
        deed(patient, said)
    for command in commands:
        _run(patient, command)


def _run(patient: Patient, command: str) -> None:
    """Run a command; the lab has no service manager, so the daemon and libvirtd are started as it would do it."""
    match shlex.split(command):
        case ["kvm-portfwd", *words]:
            patient.command(*words)
        case ["systemctl", "enable", "--now", "kvm-portfwd"]:
            patient.start()
        case ["systemctl", "start", "libvirtd"]:
            patient.host.libvirt.start()
        case words:
            patient.host.run(*words)


@contextmanager
def admitted(host: Host, guests: tuple[LxcGuest, LxcGuest, LxcGuest]) -> Iterator[Patient]:
    """Take a host in, and leave it as it was."""
    patient = Patient(host, *guests)
    try:
        yield patient
    finally:
        patient.stop()
        patient.command("flush")
    assert not host.own_rules()
