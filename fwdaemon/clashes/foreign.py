"""Reads the translations that other tools put at prerouting, from every rule system that has any."""

from dataclasses import dataclass
from typing import Final

from fwdaemon.clashes import iptables_reader, nft_reader
from fwdaemon.clashes.rivals import Standing
from fwdaemon.clashes.translation import Translation, translations
from fwdaemon.config.names import NFT_NAME
from fwdaemon.errors import KernelError, ProcessError
from fwdaemon.explain.packet import System
from fwdaemon.legacy.info import existing_tables, table_info
from fwdaemon.legacy.model import OWN_PREFIX, TableName
from fwdaemon.model import Family
from fwdaemon.nftables.existing import HookedChain, hooked_chains, is_iptables
from fwdaemon.nftables.generation import current_generation
from fwdaemon.nftables.model import TABLE_NAME
from fwdaemon.process import Runner

_DSTNAT: Final = -100  # NF_IP_PRI_NAT_DST, netfilter_ipv4.h
_PREROUTING: Final = 0  # NF_INET_PRE_ROUTING, netfilter.h
_FAMILIES: Final = {"ip": Family.IPV4, "ip6": Family.IPV6}
_PROGRAMS: Final = {Family.IPV4: "iptables", Family.IPV6: "ip6tables"}
# Where our own rules are to be, as long as there are none; see `fwdaemon.nftables.ruleset`.
_EXPECTED: Final = Standing(System.NFTABLES, -105)


@dataclass(frozen=True, slots=True)
class Foreign:
    """What other tools translate, and where our own rules stand beside it."""

    translations: tuple[Translation, ...] = ()
    ours: Standing = _EXPECTED


class ForeignRules:
    """Reads them, and tells cheaply whether there is something new to read. Its methods block."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def state(self) -> object:
        """Give what is another whenever rules changed; in the legacy tables, unless by something of the same size.

        Raises:
            KernelError: the kernel does not tell.

        """
        legacy = [(family, table_info(family, TableName.NAT)) for family in _legacy_families()]
        return current_generation(), legacy

    def read(self) -> Foreign:
        """Read everything.

        Raises:
            PortfwdError: the rules could not be listed, as for anybody but root, or not be understood at all.

        """
        try:
            return self._read()
        except (KeyError, TypeError, ValueError) as error:
            raise KernelError(f"rules of other tools are listed in a form that cannot be read: {error!r}") from error

    def _read(self) -> Foreign:
        found: list[Translation] = []
        ours = _EXPECTED
        for chain in hooked_chains():
            if (chain.kind, chain.hook) != ("nat", _PREROUTING):
                continue
            if chain.table == TABLE_NAME:
                ours = Standing(System.NFTABLES, chain.priority)
            elif is_iptables(chain):
                found += self._iptables(_FAMILIES[chain.family], System.IPTABLES_NFT)[0]
            else:
                found += self._native(chain)
        for family in _legacy_families():
            legacy, has_ours = self._iptables(family, System.LEGACY)
            found += legacy
            ours = Standing(System.LEGACY, _DSTNAT) if has_ours else ours
        return Foreign(tuple(found), ours)

    def _native(self, chain: HookedChain) -> list[Translation]:
        if not NFT_NAME.fullmatch(chain.table):  # what nft could not be asked for, and might take for more than a name
            return []
        try:
            listing = self._runner.run("nft", "-j", "list", "table", chain.family, chain.table).stdout
        except ProcessError:  # it has gone
            return []
        return list(translations(nft_reader.read_chains(listing), chain.name, chain.priority))

    def _iptables(self, family: Family, system: System) -> tuple[list[Translation], bool]:
        """Read the table nat that one variant of iptables wrote, and whether chains of ours are in it."""
        variant = "nft" if system is System.IPTABLES_NFT else "legacy"
        try:
            save = self._runner.run(f"{_PROGRAMS[family]}-{variant}-save", "-t", "nat").stdout
        except ProcessError:  # it is not installed, or what is there is beyond it
            return [], False
        chains = iptables_reader.read_chains(save, system, family)
        return list(translations(chains, iptables_reader.PREROUTING, _DSTNAT)), f":{OWN_PREFIX}" in save


def _legacy_families() -> list[Family]:
    return [family for family in Family if TableName.NAT in existing_tables(family)]
