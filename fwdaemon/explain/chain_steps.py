"""A step for each base chain on the way, and what to do about one that refuses. Pure."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from fwdaemon.config.model import DaemonSettings, Gate
from fwdaemon.explain import remedies
from fwdaemon.explain.arrival import Arrival
from fwdaemon.explain.evaluation import Judgement, Passage
from fwdaemon.explain.owners import OURS, owner_of, owners_of
from fwdaemon.explain.packet import Place, System
from fwdaemon.explain.report import Cause, Standing, Step, command, wrong
from fwdaemon.explain.rules import BaseChain
from fwdaemon.model import Family
from fwdaemon.naming import shown
from fwdaemon.nftables.gates import wanted_gates


@dataclass(frozen=True, slots=True)
class Judge:
    """Tells what chains' judgements mean for one connection.

    `daemon_runs` decides who is to mend a gate; `main` is the main file of the configuration.
    """

    arrival: Arrival
    settings: DaemonSettings
    daemon_runs: bool
    main: str

    def steps(self, passages: Iterable[Passage], end: remedies.End) -> Iterator[Step]:
        """Give a step for each chain; `end` tells the packets of this connection from others there."""
        for passage in passages:
            yield self._step(passage, end)

    def _step(self, passage: Passage, end: remedies.End) -> Step:
        chain = passage.chain
        policy = "accept" if chain.accepts else "drop"
        text = f"{describe(chain)} ({chain.priority}, policy {policy}, {owners_of(chain)})"
        match passage.judgement, passage.culprit:
            case Judgement.REFUSES, Place() as culprit:
                cause, remedy = self._remedy(chain, end)
                said = f"{text} refuses: {_told(culprit)}"
                return Step(chain.hook, Standing.WRONG, said, cause, remedy, passage)
            case Judgement.MAY_REFUSE, Place() as culprit:
                said = f"{text} may refuse, as nobody can tell from here: {_told(culprit)}"
                doubt = f"{describe(chain)} may refuse it"
                return Step(chain.hook, Standing.UNKNOWN, said, None, doubt, passage)
        return Step(chain.hook, Standing.FINE, text, passage=passage)

    def _remedy(self, chain: BaseChain, end: remedies.End) -> tuple[Cause, str]:
        if self._is_gated(chain):
            return Cause.GATE_SHUT, self.mend_ours()
        if chain.hook == "forward" and remedies.can_have_gate(chain):
            return Cause.REFUSED, remedies.open_gate(chain, self.settings.gates, self.main)
        cause = Cause.REFUSED_EARLY if chain.hook in ("ingress", "prerouting", "output") else Cause.REFUSED
        return cause, remedies.except_from(chain, end, self.arrival.protocol)

    def missing(self, name: str, text: str) -> Step:
        """Give the step at which something is missing that the daemon should have made."""
        if not self.daemon_runs:
            return wrong(
                name, f"{text}, and the daemon is not running", Cause.DAEMON_NOT_RUNNING, remedies.START_SERVICE
            )
        remedy = f"Have the daemon read its configuration again: {command('kvm-portfwd reload')}."
        return wrong(name, f"{text}, though the daemon runs", Cause.NOT_LOADED, remedy)

    def mend_ours(self) -> str:
        """Tell how to have rules of ours made again."""
        return (
            f"Mend our rules: {command('systemctl restart kvm-portfwd')}."
            if self.daemon_runs
            else remedies.START_SERVICE
        )

    def _is_gated(self, chain: BaseChain) -> bool:
        """Whether it is a chain that the daemon keeps a gate in by itself, or by the configuration."""
        if chain.hook != "forward":
            return False
        if owner_of(chain.policy) == OURS or (chain.system is System.LEGACY and chain.table == "filter"):
            return True
        return Gate(chain.family, chain.table, chain.name) in wanted_gates(Family, self.settings.gates)


def describe(chain: BaseChain) -> str:
    """Name a chain, and the rule system it is in where that is not nftables itself."""
    return shown(f"legacy {chain}" if chain.system is System.LEGACY else str(chain))


def _told(culprit: Place) -> str:
    if not culprit.number:
        return "its policy"
    owner = owner_of(culprit)
    whose = f" ({owner})" if owner != owner_of(Place(culprit.system, culprit.family, culprit.table, "", 0)) else ""
    rule = shown(culprit.text) if culprit.text else f"handle {culprit.number}"
    return f"rule in {shown(culprit.chain)}{whose}: {rule}"
