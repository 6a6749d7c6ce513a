"""The nftables backend where the rules are strange, refused or cannot be listed: it goes on, and mends its own."""

import errno
import signal
import subprocess
from dataclasses import replace

import pytest

from fwdaemon.core.state import Desired
from fwdaemon.core.types import Family, Gate
from fwdaemon.errors import KernelError, ProcessError
from fwdaemon.kernel.process import Finished, SystemRunner
from fwdaemon.nftables.backend import NftablesBackend
from fwdaemon.nftables.gates import FoundRule
from tests import sentences
from tests.kernel.test_nftables import ALL, HOSTILE, LIBVIRT, MAIL, WEB
from tests.unit.forwards import forward


@pytest.fixture
def backend(runner: SystemRunner) -> NftablesBackend:
    return NftablesBackend(runner)


def test_a_table_that_somebody_put_to_sleep_is_made_anew(backend: NftablesBackend, runner: SystemRunner) -> None:
    backend.apply(ALL, full=False)
    runner.run("nft", "add", "table", "ip", "kvm_portfwd", "{ flags dormant; }")
    result = backend.apply(ALL, full=False)
    assert result.damaged == {exposure for exposure in ALL.exposures if exposure.family is Family.IPV4}
    assert "dormant" not in runner.run("nft", "list", "table", "ip", "kvm_portfwd").stdout
    assert not backend.apply(ALL, full=True).changed


def test_chains_in_our_table_that_lead_to_each_other_go_without_harm(
    backend: NftablesBackend, runner: SystemRunner
) -> None:
    backend.apply(ALL, full=False)
    chains = "add chain ip kvm_portfwd aa\nadd chain ip kvm_portfwd bb\nadd rule ip kvm_portfwd bb jump aa\n"
    runner.run("nft", "-f", "-", stdin=chains)
    result = backend.apply(ALL, full=False)
    assert not result.damaged
    assert result.script.splitlines() == [
        f"{verb} chain ip kvm_portfwd {name}" for verb in ("flush", "delete") for name in ("aa", "bb")
    ]
    assert not backend.apply(ALL, full=True).changed


class Refusing(SystemRunner):
    """Refuses scripts that hold a text, so often, as the kernel does when another program was first."""

    def __init__(self, text: str, times: int = 1) -> None:
        super().__init__()
        self.text, self.times = text, times

    def run(self, *argv: str, stdin: str = "") -> Finished:
        if self.times and self.text in stdin:
            self.times -= 1
            raise ProcessError(argv, stdin, 1, "somebody was first")
        return super().run(*argv, stdin=stdin)


@pytest.mark.parametrize("refused", ["every_address", "delete rule inet theirs"])
def test_a_gate_that_is_not_wanted_any_more_goes_also_after_a_refusal(runner: SystemRunner, refused: str) -> None:
    runner.run("nft", "-f", "-", stdin=LIBVIRT)
    gated = Desired(frozenset({WEB}), gates=(Gate("inet", "theirs", "forward"),))
    NftablesBackend(runner).apply(gated, full=False)
    refusing = Refusing("nothing")
    backend = NftablesBackend(refusing)
    backend.apply(gated, full=False)
    refusing.text = refused
    for full in (False, True):
        backend.apply(Desired(frozenset({WEB, MAIL, HOSTILE})), full=full)
    assert not refusing.times
    assert "kvm-portfwd" not in runner.run("nft", "list", "table", "inet", "theirs").stdout


class Short(SystemRunner):
    """Cannot start programs for what is listed with a word, so often."""

    def __init__(self, word: str, times: int, error: Exception | None) -> None:
        super().__init__()
        self.word, self.times, self.error = word, times, error

    def run(self, *argv: str, stdin: str = "") -> Finished:
        if self.times and self.word in argv:
            self.times -= 1
            raise ProcessError(argv, stdin, 126, "it cannot be started") from self.error
        return super().run(*argv, stdin=stdin)


@pytest.mark.parametrize("word", ["-S", "theirs"])
def test_a_gate_is_never_thought_missing_because_no_process_was_to_be_had(runner: SystemRunner, word: str) -> None:
    runner.run("nft", "-f", "-", stdin=LIBVIRT)
    runner.run("iptables-nft", "-P", "FORWARD", "DROP")
    gated = Desired(frozenset({WEB}), gates=(Gate("inet", "theirs", "forward"),))
    backend = NftablesBackend(Short(word, 5, BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")))
    with pytest.raises(ProcessError):
        backend.apply(gated, full=False)
    result = backend.apply(gated, full=False)
    assert not result.faults
    assert {str(change.gate) for change in result.gates} >= {"inet theirs forward", "ip filter FORWARD"}


def test_a_chain_that_could_not_be_read_is_read_in_a_full_pass(runner: SystemRunner) -> None:
    runner.run("iptables-nft", "-P", "FORWARD", "DROP")
    backend, state = NftablesBackend(Short("-S", 1, None)), Desired(frozenset({WEB}))
    assert backend.apply(state, full=False).faults
    assert backend.apply(state, full=False).faults
    result = backend.apply(state, full=True)
    assert (result.faults, [str(change.gate) for change in result.gates]) == ((), ["ip filter FORWARD"])


def test_exposures_do_not_wait_until_orphaned_gates_can_be_looked_for(
    runner: SystemRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner.run("nft", "-f", "-", stdin=LIBVIRT)
    gated = Desired(frozenset({WEB}), gates=(Gate("inet", "theirs", "forward"),))
    NftablesBackend(runner).apply(gated, full=False)

    def changing(_text: str) -> list[FoundRule]:
        raise KernelError("the kernel does not list its nftables rules: they keep changing")

    backend, bare = NftablesBackend(runner), Desired(frozenset({WEB, MAIL}))
    with monkeypatch.context() as patch:
        # No program can change rules so fast that no listing of the kernel's is ever whole.
        patch.setattr("fwdaemon.nftables.existing.rules_holding", changing)
        result = backend.apply(bare, full=False)
        assert result.mended == {MAIL}
        assert any("cannot search other chains" in fault for fault in sentences.faults(result))
        assert backend.apply(bare, full=False).faults
    assert not backend.apply(bare, full=False).faults
    assert "kvm-portfwd" not in runner.run("nft", "list", "table", "inet", "theirs").stdout


def test_a_rule_of_ebtables_that_names_us_is_no_gate(backend: NftablesBackend, runner: SystemRunner) -> None:
    """Its table and chain are called as those of iptables are."""
    chain = '{ type filter hook forward priority 0; counter comment "not for kvm-portfwd"; }'
    runner.run("nft", "-f", "-", stdin=f"table bridge filter {{\nchain FORWARD {chain}\n}}\n")
    for program in ("iptables-nft", "ip6tables-nft"):
        iptables_nft(program, "-A", "FORWARD", "-j", "DROP")
    desired = Desired().having([forward("tcp [2001:db8::7]:22", "[2001:db8:5::5]:22")])
    assert {change.gate.family for change in backend.apply(desired, full=False).gates} == {"ip6"}
    assert not NftablesBackend(runner).apply(desired, full=False).changed
    assert b"kvm-portfwd" in b"".join(iptables_nft("ip6tables-nft-save"))


def test_what_we_changed_at_a_gate_ourselves_is_not_told_as_put_back(
    backend: NftablesBackend, runner: SystemRunner
) -> None:
    runner.run("nft", "-f", "-", stdin=LIBVIRT)
    gated = Desired(frozenset({WEB}), gates=(Gate("inet", "theirs", "forward"),))
    bare = replace(gated, gates=())
    told = [backend.apply(state, full=False).gates for state in (gated, replace(gated, label=1), bare, gated)]
    assert [any(change.restored for change in gates) for gates in told] == [False] * len(told)
    runner.run("nft", "flush", "chain", "inet", "theirs", "forward")
    assert [change.restored for change in backend.apply(gated, full=False).gates] == [True]


def test_a_table_that_came_between_look_and_commit_is_replaced(runner: SystemRunner) -> None:
    class Late(SystemRunner):
        made = False

        def run(self, *argv: str, stdin: str = "") -> Finished:
            if stdin and not self.made:
                self.made = True
                super().run("nft", "-f", "-", stdin="table ip kvm_portfwd { chain theirs { }; }\n")
            return super().run(*argv, stdin=stdin)

    backend = NftablesBackend(Late())
    assert backend.apply(ALL, full=False).mended == ALL.exposures
    assert "theirs" not in runner.run("nft", "list", "table", "ip", "kvm_portfwd").stdout
    assert not backend.apply(ALL, full=True).changed


# What iptables-nft takes for a chain's name, and `nft -j` ends at.
NO_TEXT = b"c\xff"


def iptables_nft(program: str, *words: str | bytes) -> list[bytes]:
    """What a program prints, without its comments, which tell the time."""
    done = subprocess.run([f"/usr/sbin/{program}", *words], check=True, capture_output=True)  # noqa: S603  words of ours
    return [line for line in done.stdout.splitlines() if not line.startswith(b"#")]


def test_a_chain_of_others_whose_name_is_no_text_stops_nobody(backend: NftablesBackend) -> None:
    for table in ("filter", "nat"):
        iptables_nft("iptables-nft", "-t", table, "-N", NO_TEXT)
    iptables_nft("iptables-nft", "-A", "FORWARD", "-j", NO_TEXT)
    before = iptables_nft("iptables-nft-save")
    result = backend.apply(ALL, full=False)
    assert result.mended == ALL.exposures
    assert not result.faults
    assert [change.gate.chain for change in result.gates] == ["FORWARD"]
    assert not backend.apply(ALL, full=True).changed
    backend.remove()
    assert iptables_nft("iptables-nft-save") == before


def test_a_table_of_ours_that_nft_cannot_print_is_made_anew(runner: SystemRunner) -> None:
    class Ending(SystemRunner):
        """Ends as nft does at such a name in our table, which nft itself cannot be made to write there."""

        def run(self, *argv: str, stdin: str = "") -> Finished:
            done = super().run(*argv, stdin=stdin)
            if "chain strange" in done.stdout or '"strange"' in done.stdout:
                raise ProcessError(argv, stdin, -signal.SIGABRT, "Assertion failed")
            return done

    backend = NftablesBackend(Ending())
    backend.apply(ALL, full=False)
    runner.run("nft", "add", "chain", "ip", "kvm_portfwd", "strange")
    backend.apply(ALL, full=False)
    assert "strange" not in runner.run("nft", "list", "ruleset").stdout
    assert not backend.apply(ALL, full=True).changed
