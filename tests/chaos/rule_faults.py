"""Every fault of the rules that may be drawn, by name."""

from dataclasses import dataclass, field

from tests.chaos import legacy_faults, nft_faults
from tests.chaos.commands import Command, Commands, Make, always, words
from tests.chaos.legacy_faults import restore
from tests.chaos.listing import NFT
from tests.chaos.nft_faults import nft
from tests.lab.release import LibvirtFirewall

_ON_NFT = frozenset({LibvirtFirewall.IPTABLES, LibvirtFirewall.NFTABLES})
_ON_NATIVE = frozenset({LibvirtFirewall.NFTABLES})
_ON_IPTABLES = frozenset({LibvirtFirewall.IPTABLES})
_ON_LEGACY = frozenset({LibvirtFirewall.LEGACY})
_ANYWHERE = _ON_NFT | _ON_LEGACY


@dataclass(frozen=True, slots=True)
class RuleFault:
    """One kind of fault.

    `wipes` names what of everybody else's goes too, as `foreign.left_by` reads it. `undo` takes a foreign rule away
    again, once it was seen to be left alone. `rests` says that connections through unchanged forwards are cut by it,
    whatever any program does.
    """

    make: Make
    on: frozenset[LibvirtFirewall] = _ANYWHERE
    undo: Commands = field(default_factory=list)
    wipes: str | None = None
    rests: bool = False


def _gate(program: str, verb: str, label: int = 25) -> Command:
    rule = f"-m connlabel --label {label} -m comment --comment kvm-portfwd -j ACCEPT"
    return words(f"{program} -w {verb} FORWARD {rule}")


def _of_gate(program: str, on: frozenset[LibvirtFirewall]) -> dict[str, RuleFault]:
    """What can happen to the gate that this program shows."""
    drop = "-m comment --comment chaos -j DROP"
    return {
        f"gate-deleted-{program}": RuleFault(always(_gate(program, "-D")), on),
        f"gate-relabelled-{program}": RuleFault(always(_gate(program, "-D"), _gate(program, "-I", label=24)), on),
        f"gate-moved-{program}": RuleFault(always(_gate(program, "-D"), _gate(program, "-A")), on),
        f"gate-doubled-{program}": RuleFault(always(_gate(program, "-A")), on),
        f"outranked-{program}": RuleFault(
            always(words(f"{program} -w -I FORWARD 1 {drop}")),
            _ANYWHERE,
            undo=[words(f"{program} -w -D FORWARD {drop}")],
            rests=True,
        ),
    }


def _native_drop(family: str) -> RuleFault:
    chain = f"{family} libvirt_network forward"
    delete = (
        f"{NFT} -a list chain {chain} | sed -n 's/.*\"chaos\" # handle //p' | xargs {NFT} delete rule {chain} handle"
    )
    insert = nft(f'insert rule {chain} counter drop comment "chaos"')
    return RuleFault(insert, _ON_NATIVE, undo=[Command(("sh", "-c", delete))], rests=True)


def _wiped_legacy(family: str, table: str, on: frozenset[LibvirtFirewall]) -> dict[str, RuleFault]:
    program = "iptables-legacy" if family == "ip" else "ip6tables-legacy"
    return {
        f"flushed-{program}-{table}": RuleFault(
            always(words(f"{program} -w -t {table} -F")), on, wipes=f"legacy {family} {table} rules"
        ),
        f"replaced-{program}-{table}": RuleFault(
            always(restore(family, table, flush=True)), on, wipes=f"legacy {family} {table}"
        ),
    }


RULE_FAULTS: dict[str, RuleFault] = {
    # Ours alone, in nftables.
    "nft-delete-table": RuleFault(nft("delete table ip kvm_portfwd"), _ON_NFT),
    "nft-delete-table-ip6": RuleFault(nft("delete table ip6 kvm_portfwd"), _ON_NFT),
    "nft-flush-table": RuleFault(nft("flush table ip kvm_portfwd"), _ON_NFT),
    "nft-flush-chain": RuleFault(nft("flush chain ip kvm_portfwd forwards"), _ON_NFT),
    "nft-flush-map": RuleFault(nft("flush map ip kvm_portfwd every_address"), _ON_NFT),
    "nft-flush-targets": RuleFault(nft("flush map ip kvm_portfwd every_address_targets"), _ON_NFT),
    "nft-flush-set": RuleFault(nft("flush set ip kvm_portfwd guest_subnets"), _ON_NFT),
    "nft-dormant-table": RuleFault(nft("add table ip kvm_portfwd { flags dormant; }"), _ON_NFT),
    "nft-stray-chain": RuleFault(nft("add chain ip kvm_portfwd stray"), _ON_NFT),
    "nft-stray-table": RuleFault(nft("add table ip kvm_portfwd", "add chain ip kvm_portfwd stray"), _ON_LEGACY),
    "nft-stray-drop": RuleFault(nft("insert rule ip kvm_portfwd forward counter drop"), _ON_NFT, rests=True),
    "nft-delete-rule": RuleFault(nft_faults.delete_rule, _ON_NFT),
    "nft-double-rule": RuleFault(nft_faults.double_rule, _ON_NFT),
    "nft-move-rule": RuleFault(nft_faults.move_rule, _ON_NFT),
    "nft-delete-element": RuleFault(nft_faults.delete_element, _ON_NFT),
    "nft-unlabel-rule": RuleFault(nft_faults.unlabel_rule, _ON_NFT),
    "nft-flush-listed": RuleFault(nft("flush set ip kvm_portfwd set_listed"), _ON_NFT),
    "nft-flush-deny": RuleFault(nft("flush chain ip kvm_portfwd deny.banned"), _ON_NFT),
    "nft-swap-elements": RuleFault(nft_faults.swap_elements, _ON_NFT),
    # Ours alone, in iptables-legacy.
    "legacy-delete-rule": RuleFault(legacy_faults.delete_rule, _ON_LEGACY),
    "legacy-double-rule": RuleFault(legacy_faults.double_rule, _ON_LEGACY),
    "legacy-move-rule": RuleFault(legacy_faults.move_rule, _ON_LEGACY),
    "legacy-flush-chain": RuleFault(legacy_faults.flush_chain, _ON_LEGACY),
    "legacy-delete-link": RuleFault(legacy_faults.delete_link, _ON_LEGACY),
    "legacy-move-link": RuleFault(legacy_faults.move_link, _ON_LEGACY),
    "legacy-double-link": RuleFault(legacy_faults.double_link, _ON_LEGACY),
    "legacy-unlabel-rule": RuleFault(legacy_faults.unlabel_rule, _ON_LEGACY),
    "ipset-flush": RuleFault(always(words("ipset flush")), _ON_LEGACY),
    "ipset-destroy": RuleFault(always(*legacy_faults.DESTROY_SETS), _ON_LEGACY),
    "legacy-stray-drop": RuleFault(always(words("iptables-legacy -w -I KVMPF_FWD 1 -j DROP")), _ON_LEGACY, rests=True),
    # The gates.
    "gate-deleted-native": RuleFault(nft_faults.delete_native_gate, _ON_NATIVE),
    "outranked-native-ip": _native_drop("ip"),
    "outranked-native-ip6": _native_drop("ip6"),
    **_of_gate("iptables-nft", _ANYWHERE),
    **_of_gate("ip6tables-nft", _ON_NFT),
    **_of_gate("iptables-legacy", _ON_NFT),
    **_of_gate("ip6tables-legacy", _ON_NFT),
    # What Docker does to a host, beside libvirt's own rules and without.
    "policy-drop-iptables-nft": RuleFault(
        always(words("iptables-nft -w -P FORWARD DROP")), undo=[words("iptables-nft -w -P FORWARD ACCEPT")]
    ),
    # Everybody's.
    "nft-flush-ruleset": RuleFault(always(words(f"{NFT} flush ruleset")), wipes="nft", rests=True),
    "iptables-nft-flush": RuleFault(always(words("iptables-nft -w -F")), wipes="nft ip filter"),
    "ip6tables-nft-flush": RuleFault(always(words("ip6tables-nft -w -F")), wipes="nft ip6 filter"),
    "iptables-nft-flush-nat": RuleFault(always(words("iptables-nft -w -t nat -F")), _ON_IPTABLES, wipes="nft ip nat"),
    **_wiped_legacy("ip", "filter", _ANYWHERE),
    **_wiped_legacy("ip6", "filter", _ANYWHERE),
    **_wiped_legacy("ip", "nat", _ON_LEGACY),
    **_wiped_legacy("ip6", "nat", _ON_LEGACY),
    **_wiped_legacy("ip", "mangle", _ON_LEGACY),
}
