"""Which faults there are, whether one is possible now, and how one is drawn. Pure.

An action is a few words, so that any sequence of them can be written down and played again. One that is not possible
when its turn comes, because another before it was left out, does nothing.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from tests.chaos.admission import BANNABLE, BROKEN, LISTS
from tests.chaos.asking import ASKING
from tests.chaos.model import ALWAYS, ENTRIES, NETWORKS, STEADY, STILL, Domain, World
from tests.chaos.rule_faults import RULE_FAULTS
from tests.lab.release import LibvirtFirewall

_TOUCHED = ("a", "b", "c", "d")
_TOUCHED_NETWORKS = tuple(sorted(NETWORKS.keys() - {STILL}))
_ALWAYS = frozenset(ALWAYS)
WRONG = ("syntax", "unknown-key", "claimed-twice", "empty-name", "no-such-port")
SHORTAGES = (
    "run", "var", "threads", "descriptors", "journal", "lock", "nft", "nft-time", "connections", "elements",
)  # fmt: skip
# Kinds that are counted one by one of what they are about.
_NAMED = frozenset(
    {"wrong-configuration", "flood", "take", "give-back", "set-file", "metadata", "reload", "open-briefly"}
)
# What becomes of a configuration that is to be confirmed; killed, the daemon starts again when its time is over.
CONFIRMATIONS = ("confirmed", "lapsed", "killed")
# What becomes of the daemon while something is open for a moment.
MEANWHILE = ("running", "stopped", "killed")
# Whom a program bans and lets in again, and that it empties its set.
BANS, RELEASES = BANNABLE, (*BANNABLE, "all")
FLOODS = ("commits", "neighbours", "leases", "pauses", "hangups", "links", "definitions")


@dataclass(frozen=True, slots=True)
class Action:
    """A fault: its kind, and what it is about."""

    kind: str
    words: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " ".join((self.kind, *self.words))

    @classmethod
    def parse(cls, text: str) -> "Action":
        """Read what `str` wrote."""
        kind, *words = text.split()
        return cls(kind, tuple(words))

    @property
    def label(self) -> str:
        """What it is counted as."""
        if self.kind == "rules":
            return f"rules: {self.words[0]}"
        return f"{self.kind} {self.words[-1 if self.kind == 'metadata' else 0]}" if self.kind in _NAMED else self.kind


def is_possible(action: Action, world: World, firewall: LibvirtFirewall) -> bool:
    """Whether it can be done to the host as it is."""
    return _POSSIBLE[action.kind](world, *action.words) and (
        action.kind != "rules" or firewall in RULE_FAULTS[action.words[0]].on
    )


def _libvirt_works(world: World) -> bool:
    """Whether libvirt can be asked to do anything; it writes to /run."""
    return world.libvirtd and "run" not in world.short


def _can_start(world: World) -> bool:
    """Whether a daemon can bring everything about: no address is assigned before that is recorded in /run."""
    anew = {"run"} if world.removed else set[str]()
    return not world.short & {"nft", "lock", *anew} and not world.misread


def _rules_can_be_written(world: World) -> bool:
    """Whether libvirt can change its rules, and a program in iptables-legacy anything, in reasonable time."""
    return not world.short & {"nft", "nft-time", "lock"}


def _domain(test: Callable[[World, Domain], bool]) -> Callable[..., bool]:
    return lambda world, key, *_: _libvirt_works(world) and test(world, world.domains[key])


def _network(*, active: bool) -> Callable[..., bool]:
    return lambda world, name: _libvirt_works(world) and _rules_can_be_written(world) and world.networks[name] is active


def _libvirtd_may_go(world: World) -> bool:
    # What happened while the daemon could do nothing about it is not reported to it later.
    may_hear = world.daemon != "paused" and not world.short & {"threads", "descriptors"}
    return _libvirt_works(world) and _rules_can_be_written(world) and may_hear


def _rules(world: World, name: str, _number: str) -> bool:
    # What libvirt loses is put back by restarting it.
    can_be_repaired = _libvirt_works(world) and _rules_can_be_written(world)
    if "relabelled" in name and not world.can_settle:
        return False  # until it is put right, only the daemon knows such a rule as its own
    return (RULE_FAULTS[name].wipes is None or can_be_repaired) and not ("lock" in world.short and "legacy" in name)


def _take(world: World, what: str) -> bool:
    if what in world.short:
        return False
    if what in {"nft", "nft-time"}:
        return world.daemon == "up" and world.libvirtd and not world.short & {"nft", "nft-time"}
    return world.daemon == "up" or what not in {"threads", "descriptors", "lock"}


_POSSIBLE: dict[str, Callable[..., bool]] = {
    "start": _domain(lambda world, domain: domain.defined and not domain.running and world.networks[domain.network]),
    "stop": _domain(lambda _, domain: domain.running),
    "crash": _domain(lambda _, domain: domain.running),
    "reboot": _domain(lambda world, domain: domain.running and domain.defined and _is_well(world, domain)),
    "undefine": _domain(lambda _, domain: domain.defined),
    "define": _domain(lambda _, domain: not domain.defined),
    "rename": _domain(lambda _, domain: domain.defined and not domain.running),
    "readdress": _domain(lambda world, domain: domain.running and domain.defined and _may_move(world, domain)),
    "network-destroy": _network(active=True),
    "network-start": _network(active=False),
    "network-redefine": _network(active=True),
    "libvirtd-stop": _libvirtd_may_go,
    "libvirtd-kill": _libvirtd_may_go,
    "libvirtd-restart": lambda world: _libvirt_works(world) and _rules_can_be_written(world),
    "libvirtd-start": lambda world: not world.libvirtd and "run" not in world.short and _rules_can_be_written(world),
    "rules": _rules,
    "configuration": lambda world, *names: not world.misread and _can_assign(world, names),
    "reload": lambda world, _, *names: not world.misread and _can_open(world) and _can_assign(world, names),
    "relabel": lambda world: world.can_settle and not world.misread and _rules_can_be_written(world),
    "metadata": _domain(lambda _, domain: domain.running),
    "set-file": lambda world, name: name not in BROKEN or (world.can_settle and "var" not in world.short),
    "ban": lambda world, address: _can_ban(world) and address not in world.banned,
    "unban": lambda world, address: _can_ban(world) and (address == "all" or address in world.banned),
    "wrong-configuration": lambda world, _kind: world.daemon != "down",
    "daemon-kill": lambda world: world.daemon == "up",
    "daemon-stop": lambda world: world.can_settle,
    "daemon-remove": lambda world: world.can_settle and "lock" not in world.short and not world.misread,
    "flush": lambda world: world.daemon == "down" and not world.removed and not world.short & {"nft", "lock"},
    "daemon-start": lambda world: world.daemon == "down" and _can_start(world),
    "daemon-pause": lambda world: world.daemon == "up",
    "daemon-resume": lambda world: world.daemon == "paused",
    "take": _take,
    "give-back": lambda world, what: what in world.short,
    "flood": lambda world, kind: (
        kind not in {"pauses", "definitions"} or (_libvirt_works(world) and _can_flutter(world.domains["a"]))
    ),
    "open": lambda world: not world.opened and _can_open(world),
    "open-briefly": lambda world, _daemon: _can_open(world),
    "close": lambda world: world.opened and _can_open(world),
}


def _can_open(world: World) -> bool:
    """Whether something can be opened for a while, which is written to /var first, or closed."""
    return world.can_settle and world.domains["a"].running and not world.short & {"var", "nft-time", "lock"}


def _can_assign(world: World, names: tuple[str, ...]) -> bool:
    """Whether public addresses that an entry adds can be assigned: none is before that is recorded in /run."""
    return "run" not in world.short or not {name for name in {*names} - {*world.entries} if ENTRIES[name].public}


def _can_ban(world: World) -> bool:
    """Whether there is a set for others, and room to write down who is in it."""
    return world.can_settle and "var" not in world.short


def _may_move(world: World, domain: Domain) -> bool:
    """Whether a guest can have another address, which the configuration has to say.

    libvirt writes the rules of a network anew when a reservation in it changes.
    """
    return _is_well(world, domain) and not world.misread and _rules_can_be_written(world)


def _is_well(world: World, domain: Domain) -> bool:
    return domain.plugged and world.networks[domain.network]


def _can_flutter(domain: Domain) -> bool:
    return domain.running


# How often each kind is drawn, if it is possible. What ends a state in which little can be seen is drawn more often.
_WEIGHTS = {
    "start": 40, "stop": 14, "crash": 7, "reboot": 5, "undefine": 2, "define": 15, "rename": 12, "readdress": 7,
    "network-destroy": 1, "network-start": 15, "network-redefine": 1,
    "libvirtd-stop": 2, "libvirtd-kill": 2, "libvirtd-restart": 2, "libvirtd-start": 40,
    "rules": 40, "configuration": 8, "wrong-configuration": 2,
    "daemon-kill": 3, "daemon-stop": 3, "daemon-remove": 3, "flush": 15, "daemon-start": 80,
    "daemon-pause": 3, "daemon-resume": 80,
    "take": 50, "give-back": 90, "flood": 6, "open": 8, "open-briefly": 6, "close": 4,
    "reload": 10, "relabel": 3, "metadata": 12, "set-file": 16, "ban": 10, "unban": 8,
}  # fmt: skip


def draw(random: Random, world: World, firewall: LibvirtFirewall) -> Action:
    """Draw one that is possible."""
    while True:
        kind = random.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
        action = Action(kind, tuple(_drawn_words(random, kind, world, firewall)))
        if is_possible(action, world, firewall):
            return action


_CHOICES: Mapping[str, tuple[Sequence[str], ...]] = {
    **dict.fromkeys(("start", "stop", "crash", "reboot", "undefine", "define", "readdress"), (_TOUCHED,)),
    **dict.fromkeys(("network-destroy", "network-start", "network-redefine"), (_TOUCHED_NETWORKS,)),
    "rename": (("d",),),
    "wrong-configuration": (WRONG,),
    "flood": (FLOODS,),
    "metadata": (("a",), tuple(ASKING)),
    "set-file": ((*LISTS, *BROKEN),),
    "ban": (BANS,),
    "unban": (RELEASES,),
    "open-briefly": (MEANWHILE,),
}


def _drawn_words(random: Random, kind: str, world: World, firewall: LibvirtFirewall) -> Iterator[str]:
    if kind in _CHOICES:
        yield from (random.choice(choices) for choices in _CHOICES[kind])
    elif kind == "rules":
        yield random.choice([name for name, fault in RULE_FAULTS.items() if firewall in fault.on])
        yield str(random.randrange(10**6))
    elif kind in {"configuration", "reload"}:
        yield from (random.choice(CONFIRMATIONS) for _ in range(kind == "reload"))
        yield from (name for name in ENTRIES if name in _ALWAYS or random.random() < 0.7)
    elif kind in {"take", "give-back"}:
        yield random.choice(SHORTAGES if kind == "take" else sorted(world.short) or SHORTAGES)


assert STEADY not in _TOUCHED
