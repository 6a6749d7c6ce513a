"""The kernel's rules in one pass, and what of them must be the same after each wipe.

What guests that come and go have of them differs from look to look; it is compared only while they stay. Everybody
else's rules are compared along with ours.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.chaos.listing import NFT, Listing
from tests.endurance.scene import PASSING_SIGNS
from tests.lab.host import Host
from tests.lab.release import LibvirtFirewall

_OWN_TABLE = "kvm_portfwd"
# Its elements are the connections that were ended in the last minutes.
_FLEETING_SET = "ended"
_COUNTERS = re.compile(r"\[\d+:\d+\]")
_PASSING = re.compile(PASSING_SIGNS)
_LEGACY = {"ip": "iptables-legacy-save", "ip6": "ip6tables-legacy-save"}

Item = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Rules:
    """One pass: what nft lists, as (kind, item), and the lines of the legacy tables of each family."""

    items: list[tuple[str, Item]]
    legacy: dict[str, list[str]]

    @classmethod
    def of(cls, host: Host) -> "Rules":
        """List them; the legacy tables only where libvirt and we write there."""
        listed = json.loads(host.run(NFT, "-j", "-s", "list", "ruleset").stdout)["nftables"]
        items = [next(iter(item.items())) for item in listed if "metainfo" not in item]
        programs = _LEGACY if host.flavour.firewall is LibvirtFirewall.LEGACY else {}
        return cls(items, {family: _lines(host.run(program).stdout) for family, program in programs.items()})

    def whole(self) -> Counter[str]:
        """Everything, one text for each thing."""
        return Counter(self._texts())

    def lasting(self) -> Counter[str]:
        """Everything but what belongs to guests that come and go."""
        return Counter(text for text in self._texts() if _lasts(text))

    def passing(self) -> frozenset[str]:
        """What belongs to those guests."""
        return frozenset(text for text in self._texts() if not _lasts(text))

    def listing(self) -> Listing:
        """Our lasting rules in the form that faults are drawn from."""
        own = {f"own-{family}": json.dumps({"nftables": list(self._own_lasting(family))}) for family in _LEGACY}
        legacy = {f"legacy-{family}": "\n".join(filter(_lasts, lines)) for family, lines in self.legacy.items()}
        return Listing(own | legacy)

    def native_gates(self) -> list[Item]:
        """Our rules in libvirt's own chains."""
        return [
            item
            for kind, item in self.items
            if kind == "rule" and item["table"] != _OWN_TABLE and item.get("comment") == "kvm-portfwd"
        ]

    def _own_lasting(self, family: str) -> Iterator[dict[str, Item]]:
        for kind, item in self.items:
            if (item["family"], item.get("table")) == (family, _OWN_TABLE) and _lasts(_text(item)):
                elements = [one for one in item.get("elem", ()) if _lasts(json.dumps(one))]
                yield {kind: {**item, "elem": elements}}

    def _texts(self) -> Iterator[str]:
        """Rules are numbered within their chain, as their order matters; the order of elements does not."""
        number: Counter[str] = Counter()
        for kind, item in self.items:
            where = f"{kind} {item['family']} {item.get('table')} {item.get('chain', item.get('name'))}"
            number[where] += 1
            yield f"{where} {number[where]} {_text(item)}"
            if item.get("name") != _FLEETING_SET:
                yield from (f"{where} {json.dumps(element)}" for element in item.get("elem", ()))
        for lines in self.legacy.values():
            yield from lines


def _lasts(text: str) -> bool:
    return _PASSING.search(text) is None


def _text(item: Item) -> str:
    return json.dumps({key: value for key, value in item.items() if key not in {"handle", "elem"}})


def _lines(saved: str) -> list[str]:
    return [_COUNTERS.sub("", line) for line in saved.splitlines() if not line.startswith("#")]
