"""Doing an action to the host, and to the model of it."""

import signal
from collections.abc import Callable
from random import Random

from tests.chaos.actions import Action
from tests.chaos.commands import Commands
from tests.chaos.foreign import install_bystander
from tests.chaos.guests import is_running
from tests.chaos.listing import NFT, Listing
from tests.chaos.model import RENAMED, TEMPORARY
from tests.chaos.probes import Probe, ask
from tests.chaos.reloading import Reloading, portfwd
from tests.chaos.rule_faults import RULE_FAULTS
from tests.chaos.shortages import Shortages
from tests.chaos.stage import Stage
from tests.lab.host import CLIENT4, PUBLIC4_SECOND
from tests.lab.place import wait_until

_WRONG = {
    "syntax": "[[forward]\n",
    "unknown-key": '[daemon]\nlibvrit = ["lxc:///system"]\n',
    "claimed-twice": '[[forward]]\ndomain = "a"\nports = ["80"]\n[[forward]]\ndomain = "b"\nports = ["80"]\n',
    "empty-name": '[[forward]]\ndomain = ""\nports = ["80"]\n',
    "no-such-port": '[[forward]]\ndomain = "a"\nports = ["65536"]\n',
}
_FLOODS = {
    # By a copy of nft, as its own may have been taken away.
    "commits": f"for n in $(seq 150); do printf 'add table inet flood\\ndelete table inet flood\\n' | {NFT} -f -; done",
    "neighbours": "for n in $(seq 2000); do echo neigh replace 198.51.101.$((n % 200 + 10)) lladdr"
    " 02:00:00:00:$((n % 80 + 10)):$((n / 80 + 10)) nud reachable dev eth1; done | ip -batch - ;"
    " ip neigh flush dev eth1",
    "leases": "cd /var/lib/libvirt/dnsmasq && for n in $(seq 500); do echo '[]' >flood.tmp"
    " && mv flood.tmp virbr9.status; done; rm -f virbr9.status",
    "links": "for n in $(seq 100); do ip link add flood type veth peer name flood2 && ip link del flood; done",
}
_FLUTTERS, _DEFINITIONS = 30, 10_000
_BRIEFLY = "3s"
# What one daemon alone is short of.
_OF_DAEMON = {"threads", "descriptors"}


class Faults:
    """Does one action after the other."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._host = stage.host
        self._world = stage.world
        self._shortages, self._reloading = Shortages(stage), Reloading(stage)
        self._done: dict[str, Callable[..., None]] = {
            "start": self._start,
            "stop": self._stop,
            "crash": self._crash,
            "reboot": lambda key: self._stage.guests[key].reboot(),
            "undefine": self._undefine,
            "define": self._define,
            "rename": self._rename,
            "readdress": self._readdress,
            "network-destroy": self._destroy_network,
            "network-start": self._start_network,
            "network-redefine": self._redefine_network,
            "libvirtd-stop": lambda: self._leave_libvirtd(self._host.libvirt.stop),
            "libvirtd-kill": lambda: self._leave_libvirtd(self._host.libvirt.kill),
            "libvirtd-restart": self._host.libvirt.restart,
            "libvirtd-start": self._start_libvirtd,
            "rules": self._change_rules,
            "configuration": self._configure,
            "wrong-configuration": lambda kind: self._stage.configure(_WRONG[kind]),
            "daemon-kill": self._kill_daemon,
            "daemon-stop": lambda: self._stop_daemon(remove=False),
            "daemon-remove": lambda: self._stop_daemon(remove=True),
            "flush": self._flush,
            "daemon-start": self._start_daemon,
            "daemon-pause": lambda: self._signal_daemon(signal.SIGSTOP, "paused"),
            "daemon-resume": lambda: self._signal_daemon(signal.SIGCONT, "up"),
            "take": self._take,
            "give-back": self._give_back,
            "flood": self._flood,
            "open": lambda: self._open("open", "--for", "1d", opened=True),
            "open-briefly": self._open_briefly,
            "close": lambda: self._open("close", opened=False),
            "reload": self._reloading.reload,
            "relabel": self._reloading.relabel,
            "set-file": self._reloading.set_file,
            "ban": self._reloading.ban,
            "unban": self._reloading.unban,
            "metadata": self._ask,
        }

    def do(self, action: Action) -> None:
        """Do it; what follows from it is not waited for."""
        self._done[action.kind](*action.words)

    def repair(self) -> None:
        """Bring back what was wiped of everybody else's: libvirt writes its rules only when it starts."""
        self._host.libvirt.restart()
        install_bystander(self._host)

    def run(self, commands: Commands) -> None:
        """Run programs on the host."""
        for command in commands:
            self._host.run(*command.argv, stdin=command.stdin)

    def _start(self, key: str) -> None:
        self._stage.guests[key].start()
        domain = self._world.domains[key]
        domain.running = domain.plugged = True

    def _stop(self, key: str) -> None:
        self._stage.guests[key].stop()
        self._world.domains[key].running = False

    def _crash(self, key: str) -> None:
        guest = self._stage.guests[key]
        self._host.run("kill", "-KILL", str(guest.init_pid))
        # A domain without a definition is not there any more when it has ended.
        wait_until(lambda: not is_running(self._host, guest.name), f"{key} is gone")
        self._world.domains[key].running = False

    def _undefine(self, key: str) -> None:
        self._stage.guests[key].undefine()
        self._world.domains[key].defined = False

    def _define(self, key: str) -> None:
        self._stage.guests[key].define()
        self._world.domains[key].defined = True

    def _rename(self, key: str) -> None:
        domain = self._world.domains[key]
        domain.name = key if domain.name == RENAMED else RENAMED
        self._stage.guests[key].rename()

    def _readdress(self, key: str) -> None:
        """Change the address inside, in libvirt's reservation if it has one, and in the configuration."""
        domain = self._world.domains[key]
        before = domain.address4, domain.address6
        domain.turn += 1
        self._stage.guests[key].move(before)
        if key == "a":
            self._stage.reserve()
        self._stage.configure(self._world.config())

    def _ask(self, key: str, what: str) -> None:
        """Have a domain ask for something in its own definition."""
        self._world.domains[key].asks = what
        self._stage.guests[key].ask()

    def _destroy_network(self, name: str) -> None:
        self._host.libvirt.destroy_network(name)
        self._world.networks[name] = False
        for domain in self._world.domains.values():
            # libvirt does not plug running containers back in.
            domain.plugged &= domain.network != name

    def _start_network(self, name: str) -> None:
        self._host.libvirt.start_network(name)
        self._world.networks[name] = True

    def _redefine_network(self, name: str) -> None:
        """Destroy it, define it anew as it is, and start it."""
        self._destroy_network(name)
        with self._host.libvirt.connection() as connection:
            document = connection.networkLookupByName(name).XMLDesc()
            connection.networkDefineXML(document)
        self._start_network(name)

    def _leave_libvirtd(self, end: Callable[[], None]) -> None:
        end()
        self._world.libvirtd = False

    def _start_libvirtd(self) -> None:
        self._host.libvirt.start()
        self._world.libvirtd = True
        self._world.knows |= self._world.daemon != "down"

    def _change_rules(self, name: str, number: str) -> None:
        commands = RULE_FAULTS[name].make(Random(int(number)), Listing.of(self._host))  # noqa: S311  to be repeated, not to be secret
        for command in commands:
            # While the daemon is away, what is to be changed may have been taken away before.
            self._host.run(*command.argv, stdin=command.stdin, check=self._world.can_settle)
        if RULE_FAULTS[name].wipes == "nft":
            self._world.short.discard("elements")

    def _configure(self, *names: str) -> None:
        self._world.entries = names
        self._stage.configure(self._world.config())

    def _kill_daemon(self) -> None:
        self._stage.kill_daemon()
        self._world.daemon = "down"
        self._world.short -= _OF_DAEMON

    def _stop_daemon(self, *, remove: bool) -> None:
        """End it as systemd would, with what it holds left as it is or taken away."""
        self._stage.stop_daemon(remove=remove)
        self._world.daemon, self._world.removed = "down", remove
        self._world.short -= _OF_DAEMON

    def _flush(self) -> None:
        portfwd(self._host, "flush")
        self._world.removed = True

    def _start_daemon(self) -> None:
        self._stage.start_daemon()
        self._world.daemon = "up"
        self._world.knows = self._world.libvirtd

    def _signal_daemon(self, number: signal.Signals, state: str) -> None:
        self._stage.signal_daemon(number)
        self._world.daemon = state

    def _take(self, what: str) -> None:
        self._shortages.all[what].begin()
        self._world.short.add(what)

    def _give_back(self, what: str) -> None:
        self._shortages.all[what].end()
        self._world.short.remove(what)

    def _open(self, *words: str, opened: bool) -> None:
        """Open something for a while, or close it."""
        verb, *rest = words
        ports = [port.word for port in TEMPORARY.ports]
        portfwd(self._host, verb, TEMPORARY.domain, *ports, *rest)
        self._world.opened = opened

    def _open_briefly(self, daemon: str) -> None:
        """Open it for a moment, or let what is open end so soon, while the daemon is `running`, `stopped` or `killed`.

        Nothing answers after that, before another daemon is there to take the rules away.
        """
        self._open("open", "--for", _BRIEFLY, opened=False)
        if daemon == "stopped":
            self._stop_daemon(remove=False)
        elif daemon == "killed":
            self._kill_daemon()
        places = [Probe("outside", CLIENT4, port.protocol, PUBLIC4_SECOND, port.first) for port in TEMPORARY.ports]
        wait_until(lambda: not any(ask(self._stage, place) for place in places), "what was opened briefly has ended")

    def _flood(self, kind: str) -> None:
        if kind == "pauses":
            self._stage.guests["a"].flutter(_FLUTTERS)
        elif kind == "definitions":
            self._stage.guests["a"].multiply(_DEFINITIONS)
        elif kind != "hangups":
            self._host.run("sh", "-c", _FLOODS[kind])
        elif self._world.daemon != "down":
            self._hang_up()

    def _hang_up(self) -> None:
        for _ in range(100):
            self._stage.signal_daemon(signal.SIGHUP)
