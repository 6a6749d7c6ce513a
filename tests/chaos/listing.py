"""The kernel's rules as the system's own programs list them, all taken at one time."""

import re
from dataclasses import dataclass

from tests.lab.host import Host
from tests.lab.rules import foreign_rules, own_rules

# A copy, so that rules can be listed while nft is taken away from its place.
NFT = "/var/lib/lab-nft"
# iptables-nft makes a table that it lists, and iptables lets go of its lock when it lists: neither is to happen here.
# Families are listed one by one, since nft shows targets of ip6tables-nft wrongly once it has loaded those of IPv4.
# The one large table of others is looked at when it goes; to print its elements each time would take too long.
_CROWD = "/^table ip lab_crowd {/,/^}/d"
_LIST = f"""
section() {{ printf '\\n\\036%s\\n' "$1"; }}
for family in ip ip6; do
    section own-$family; {NFT} -j list table $family kvm_portfwd 2>/dev/null
    section libvirt-$family; {NFT} --stateless list chain $family libvirt_network forward 2>/dev/null
done
section iptables-ip; {NFT} list chain ip filter FORWARD >/dev/null 2>&1 && iptables-nft -S FORWARD
section iptables-ip6; {NFT} list chain ip6 filter FORWARD >/dev/null 2>&1 && ip6tables-nft -S FORWARD
section legacy-ip; iptables-legacy-save
section legacy-ip6; ip6tables-legacy-save
section ruleset
for family in ip ip6 inet arp bridge netdev; do {NFT} --stateless --terse list ruleset $family; done | sed '{_CROWD}'
{NFT} list set inet bystander known 2>/dev/null
section ipsets; ipset save
section addresses; ip -oneline -4 address show dev eth0
"""
_COUNTERS = re.compile(r"\[\d+:\d+\]")


def copy_nft(host: Host) -> None:
    """Make the copy of nft that rules are listed with."""
    host.run("cp", "/usr/sbin/nft", NFT)


@dataclass(frozen=True, slots=True)
class Listing:
    """Sections by name, as `own-ip`, and the same for ip6: own, libvirt, iptables and legacy; then those for both."""

    sections: dict[str, str]

    @classmethod
    def of(cls, host: Host) -> "Listing":
        """List everything on a host."""
        text = host.run("sh", "-c", _LIST, check=False).stdout
        parts = (part.partition("\n") for part in text.split("\036")[1:])
        return cls({name: body.strip("\n") for name, _, body in parts})

    def __getitem__(self, name: str) -> str:
        return self.sections[name]

    @property
    def foreign(self) -> str:
        """Everybody else's rules, without counters."""
        return foreign_rules(self["ruleset"], self["legacy-ip"] + "\n" + self["legacy-ip6"])

    @property
    def own(self) -> str:
        """The rules of ours."""
        return own_rules(self["ruleset"], self["legacy-ip"] + "\n" + self["legacy-ip6"])

    def legacy(self, family: str, table: str) -> list[str]:
        """The lines of one legacy table that make chains and rules."""
        lines = _COUNTERS.sub("", self[f"legacy-{family}"]).splitlines()
        inside, found = False, []
        for line in lines:
            inside = line == f"*{table}" or (inside and line != "COMMIT")
            if inside and line.startswith((":", "-A ")):
                found.append(line.strip())
        return found
