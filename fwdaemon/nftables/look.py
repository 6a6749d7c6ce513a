"""Reads what the kernel holds: our tables, the gates, and rules of ours where none should be."""

import signal
from collections.abc import Mapping

from fwdaemon.config.model import Gate
from fwdaemon.errors import KernelError, ProcessError
from fwdaemon.model import Family
from fwdaemon.nftables.existing import existing_tables, rules_holding
from fwdaemon.nftables.gates import (
    COMMENT,
    LIBVIRT_CHAIN,
    LIBVIRT_TABLE,
    GateState,
    is_iptables_gate,
    read_iptables,
    read_native,
    strays,
    wanted_gates,
)
from fwdaemon.nftables.model import TABLE_NAME, Table, family_name
from fwdaemon.nftables.observed import Observed, Wanted
from fwdaemon.nftables.readback import read_table
from fwdaemon.process import Runner


class Observer:
    """Looks at the kernel through `nft` and `iptables-nft`."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._faults: list[str] = []
        self._libvirt = False

    def look(self, generation: int, wanted: Wanted, known: Mapping[Family, Table], *, everywhere: bool) -> Observed:
        """Read our tables and the wanted gates; `everywhere` looks for gates that are not wanted, too.

        What is found equal to `known` is given as the same object.

        Raises:
            ProcessError: `nft` could not list what is there.
            KernelError: the kernel could not.

        """
        self._faults = []
        there = existing_tables()
        self._libvirt = any(table == LIBVIRT_TABLE for _, table in there)
        named = wanted_gates(sorted(wanted.families), wanted.configured)
        gates = [gate for gate in named if (gate.family, gate.table) in there]
        tables = {
            family: self._table(family, known.get(family))
            for family in Family
            if (family_name(family), TABLE_NAME) in there
        }
        states = tuple(state for gate in gates if (state := self.gate(gate, wanted.mark)))
        stray = self._strays(gates, wanted.mark) if everywhere else ()
        found, searched = stray or (), stray is not None
        return Observed(
            generation, tables, states, found, tuple(self._faults), libvirt=self._libvirt, searched=searched
        )

    def _table(self, family: Family, known: Table | None) -> Table:
        try:
            listing = self._runner.run("nft", "-j", "list", "table", family_name(family), TABLE_NAME).stdout
        except ProcessError as error:
            if error.returncode != -signal.SIGABRT:
                raise
            # nft ends where somebody gave a chain or set a name that is no text: what holds one is not our table.
            return Table(family, {}, {})
        return read_table(family, listing, known)

    def gate(self, gate: Gate, mark: int) -> GateState | None:
        """Read a gate; `None` where the table has no such chain, or cannot be changed safely."""
        if is_iptables_gate(gate):
            return self._iptables_gate(gate, mark)
        try:
            listing = self._runner.run("nft", "-j", "list", "chain", gate.family, gate.table, gate.chain).stdout
        except ProcessError:
            return None
        return read_native(gate, listing, mark)

    def _iptables_gate(self, gate: Gate, mark: int) -> GateState | None:
        try:
            listing = self._runner.run(iptables_program(gate), "-S", gate.chain).stdout
        except ProcessError as error:
            self._faults.append(f"no gate in {gate}: {error}; name a native chain in [daemon] gates instead")
            return None
        self._libvirt = self._libvirt or LIBVIRT_CHAIN in listing
        return read_iptables(gate, listing, mark)

    def _strays(self, gates: list[Gate], mark: int) -> tuple[GateState, ...] | None:
        try:
            found = rules_holding(COMMENT)
        except KernelError as error:  # as where thousands of rules change all the time: openings need not wait for this
            self._faults.append(f"rules of ours in other chains than the wanted ones are not looked for: {error}")
            return None
        suspects = {Gate(rule.family, rule.table, rule.chain) for rule in found}.difference(gates)
        iptables = [self._iptables_gate(gate, mark) for gate in sorted(suspects, key=str) if is_iptables_gate(gate)]
        return strays(found, gates) + tuple(state for state in iptables if state and state.ours)


def iptables_program(gate: Gate, suffix: str = "") -> str:
    """Name iptables' nft variant for a gate's family, `ip6tables-nft-restore` with suffix `-restore`."""
    return f"{'iptables' if gate.family == 'ip' else 'ip6tables'}-nft{suffix}"
