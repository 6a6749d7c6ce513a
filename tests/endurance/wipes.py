"""Wipes our rules, one kind after the other by lot, and sees each healed before the next."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from tests.chaos.commands import FAMILIES, Command, Commands
from tests.chaos.listing import NFT, Listing
from tests.chaos.rounds import WrongError
from tests.chaos.rule_faults import RULE_FAULTS
from tests.endurance.commits import Commits
from tests.endurance.rules import Rules
from tests.endurance.scene import Scene
from tests.lab.release import LibvirtFirewall

_ON_NFT = (
    "nft-delete-table",
    "nft-delete-table-ip6",
    "nft-flush-table",
    "nft-flush-chain",
    "nft-flush-map",
    "nft-flush-targets",
    "nft-flush-set",
    "nft-delete-rule",
    "nft-delete-element",
)
_GATE, _RULESET = "gate-deleted-native", "nft-flush-ruleset"
_KINDS = {
    LibvirtFirewall.NFTABLES: (*_ON_NFT, _GATE),
    LibvirtFirewall.IPTABLES: (*_ON_NFT, "gate-deleted-iptables-nft"),
    LibvirtFirewall.LEGACY: ("legacy-delete-rule", "legacy-flush-chain", "legacy-delete-link"),
}
# Which rule or element goes is drawn from what there is.
_DRAWN = {"nft-delete-rule", "nft-delete-element", *_KINDS[LibvirtFirewall.LEGACY]}
# One wipe in so many takes everybody's rules, where libvirt's own can be put back in the same transaction.
_RULESET_EVERY = 50
# Where pass after pass finds something to repair, the daemon waits between them, longer each time. After so many wipes,
# the next one leaves it the time for a pass that finds nothing.
_BURST, _BREATH_S = 4, 0.25
_HEALED_WITHIN_S = 60.0
_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Healed:
    """One wipe, and how long it took from the wiping program's end until everything was seen to be right again."""

    kind: str
    seconds: float


class Wiper:
    """Wipes one host. All that lasts must be as it was when this was made."""

    def __init__(self, scene: Scene, heard: Commits, random: Random) -> None:
        self._host, self._heard, self._random = scene.host, heard, random
        self._daemon = scene.daemon
        self._rules = Rules.of(self._host)
        self._wanted, self._whole = self._rules.lasting(), self._rules.whole()
        self._theirs = _libvirts_tables(scene) if self._host.flavour.firewall is LibvirtFirewall.NFTABLES else ""
        self._turn = 0
        # How many rules and elements of guests that come and go were seen to be there anew, or to be gone.
        self.opened = self.closed = 0

    def wipe(self) -> Healed:
        """Wipe once, and wait until that is healed.

        Raises:
            WrongError: it is not.

        """
        self._turn += 1
        if self._turn % _BURST == 0:
            time.sleep(_BREATH_S)
        kind = self._drawn()
        commands = self._commands(kind)
        if not commands:
            raise WrongError(f"{kind}: there is nothing to wipe")
        self._heard.forget()
        for command in commands:
            self._host.run(*command.argv, stdin=command.stdin)
        ended = time.monotonic()
        before = self._rules.passing()
        healed_at = self._wait(Rules.lasting, self._wanted)
        self._see(before, self._rules.passing())
        return Healed(kind, max(0.0, healed_at - ended))

    def _see(self, before: frozenset[str], now: frozenset[str]) -> None:
        self.opened += len(now - before)
        self.closed += len(before - now)

    def wait_whole(self) -> None:
        """Wait until also what guests that come and go have is as it was; they must run."""
        self._wait(Rules.whole, self._whole)

    def _drawn(self) -> str:
        if self._theirs and self._turn % _RULESET_EVERY == 0:
            return _RULESET
        return self._random.choice(_KINDS[self._host.flavour.firewall])

    def _commands(self, kind: str) -> Commands:
        if kind == _RULESET:
            return [Command((NFT, "-f", "-"), f"flush ruleset\n{self._theirs}")]
        if kind == _GATE:
            gate = self._random.choice(self._rules.native_gates())
            words = (gate[key] for key in ("family", "table", "chain"))
            return [Command((NFT, "delete", "rule", *words, "handle", str(gate["handle"])))]
        listing = self._rules.listing() if kind in _DRAWN else Listing({})
        return RULE_FAULTS[kind].make(self._random, listing)

    def _wait(self, part: Callable[[Rules], Counter[str]], wanted: Counter[str]) -> float:
        """Wait until a part of the rules is as wanted; when the commit was after which it was."""
        began = time.monotonic()
        while True:
            heard_at = self._heard.wait()
            self._rules = Rules.of(self._host)
            if (seen := part(self._rules)) == wanted:
                return heard_at
            if heard_at > began + _HEALED_WITHIN_S:
                wrong = [f"missing {text}" for text in wanted - seen] + [f"too much {text}" for text in seen - wanted]
                raise WrongError("\n".join([f"after {_HEALED_WITHIN_S:g} s still wrong:", *wrong[:_SHOWN]]))


def _libvirts_tables(scene: Scene) -> str:
    """Libvirt's own tables as text that nft reads, without what is ours in them."""
    tables = [scene.host.run(NFT, "-s", "list", "table", family, "libvirt_network").stdout for family in FAMILIES]
    return "".join(f"{line}\n" for text in tables for line in text.splitlines() if 'comment "kvm-portfwd"' not in line)
