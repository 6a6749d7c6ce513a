"""Whatever stops being allowed is ended: what is open when everything is taken away, after a restart, by a reload."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from fwdaemon.commands import run
from fwdaemon.core.report import ApplyResult, Cause
from fwdaemon.core.state import Desired
from fwdaemon.core.types import Address, Family, Protocol
from fwdaemon.errors import KernelError
from fwdaemon.kernel.conntrack_listing import Entry
from fwdaemon.resolve.flows import Flow, Judge
from fwdaemon.status.reloads import LastGood
from tests.unit.backend_behaviour import FLOW, MAIL, STATE, WEB
from tests.unit.memory_backend import Kernel
from tests.unit.reconcile_bench import Bench, ask
from tests.unit.seams import Connections, without


@dataclass
class Racing(Connections):
    """A client connects as soon as connections have been listed, if rules lead it to a guest by then."""

    kernel: Kernel = field(default_factory=Kernel)

    def outdated(
        self, judge: Judge, label: int, guests: Collection[Address] | None = None, clients: Collection[Address] = ()
    ) -> Iterator[list[Entry]]:
        listed = [*super().outdated(judge, label, guests, clients)]
        if any(self.kernel.rules.values()):
            self.flows.append(FLOW)
        yield from listed


def test_what_connects_while_everything_is_taken_away_goes_on_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    kernel = Kernel()
    bench = Bench(kernel=kernel, connections=Racing(kernel=kernel), caplog=caplog)
    bench.reconcile(STATE)
    bench.reconciler.remove(Cause())
    assert (kernel.rules, bench.connections.flows) == ({}, [])


def test_where_nothing_is_held_nothing_is_written_to_remove_it(bench: Bench) -> None:
    bench.reconciler.remove(Cause())
    assert (bench.kernel.generation, bench.clock.slept) == (0, [])


def test_that_open_connections_cannot_be_listed_is_told_and_keeps_no_rules(bench: Bench) -> None:
    bench.reconcile(STATE)
    bench.connections.faults = [OSError("no descriptor")]
    bench.reconciler.remove(Cause())
    assert bench.lines()[0] == "open connections may go on: no descriptor"
    assert not bench.kernel.rules


def test_binding_a_forward_to_an_interface_while_no_daemon_runs_ends_what_may_have_come_by_another(
    bench: Bench,
) -> None:
    bound = replace(WEB, interface="eth0")
    bench.reconcile(Desired().having([WEB]))
    bench.connections.flows = [FLOW]
    bench.begin()
    bench.reconcile(Desired().having([bound]))
    assert bench.connections.flows == []
    # What comes from then on comes by that interface.
    bench.connections.flows = [FLOW]
    bench.begin()
    bench.reconcile(Desired().having([bound]))
    assert bench.connections.flows == [FLOW]


def test_an_exposure_that_goes_while_no_daemon_runs_takes_its_connections_along_where_another_is_bound(
    bench: Bench,
) -> None:
    """The other leads there too, but by one interface; by which the connection came, is unknown."""
    bound, other = replace(WEB, interface="eth0"), replace(WEB, listen=FLOW.destination)
    bench.reconcile(Desired().having([bound, other]))
    bench.connections.flows = [FLOW]
    bench.begin()
    bench.reconcile(Desired().having([bound]))
    assert bench.connections.flows == []


def test_after_a_wipe_while_no_daemon_runs_nothing_is_ended_that_is_still_allowed(bench: Bench) -> None:
    state = Desired().having([replace(WEB, interface="eth0")])
    bench.reconcile(state)
    bench.connections.flows = [FLOW]
    bench.begin()
    bench.kernel.wipe()
    bench.reconcile(state)
    assert bench.connections.flows == [FLOW]


def test_what_went_while_the_first_sweep_was_put_off_is_not_forgotten(bench: Bench) -> None:
    bench.connections.faults = [KernelError("no descriptor")]
    bench.connections.flows = [FLOW]
    bench.reconcile(Desired().having([WEB]))
    bench.reconcile(Desired().having([replace(WEB, interface="eth0")]), ask(reloaded=True))
    assert bench.connections.flows == []


LABELLED = replace(Desired().having([WEB]), label=30)


def test_what_has_the_label_of_before_ends_once_another_is_configured(bench: Bench) -> None:
    bench.reconcile(Desired().having([WEB]))
    other = replace(FLOW, client_port=40001)
    bench.connections.flows, bench.connections.labels = [FLOW, other], {FLOW: 25, other: 30}
    bench.reconcile(LABELLED, ask(reloaded=True))
    assert bench.connections.flows == [other]


def test_what_has_the_label_of_before_ends_after_a_start_with_another(bench: Bench) -> None:
    bench.reconcile(Desired().having([WEB]))
    bench.connections.flows, bench.connections.labels = [FLOW], {FLOW: 25}
    bench.begin()
    bench.reconcile(Desired().having([WEB]))
    assert bench.connections.flows == [FLOW]
    bench.begin()
    bench.reconcile(LABELLED)
    assert bench.connections.flows == []


def test_what_has_the_label_of_the_rules_ends_with_them(bench: Bench) -> None:
    bench.reconcile(LABELLED)
    bench.connections.flows, bench.connections.labels = [FLOW], {FLOW: 30}
    bench.begin()
    bench.reconciler.remove(Cause())
    assert bench.connections.flows == []


def test_a_flush_with_a_wrong_file_goes_by_what_was_right_last(tmp_path: Path) -> None:
    main = tmp_path / "portfwd.toml"
    LastGood(main, tmp_path).keep({main: b"[daemon]\nlabel = 30\n"})
    main.write_text("[daemon]\nlabel = 31\nlibvrit = []\n")
    assert run._settings(main, tmp_path).label == 30  # noqa: SLF001  the rest of it works on this host
    main.write_text("[daemon]\nlabel = 31\n")
    assert run._settings(main, tmp_path).label == 31  # noqa: SLF001  see above
    assert run._settings(tmp_path / "others.toml", tmp_path).label == 25  # noqa: SLF001  see above


LEFT = Flow(Protocol.TCP, MAIL.target, FLOW.source, 443, FLOW.source, 443, MAIL.public, 40000)
ROUTED_LEFT = replace(LEFT, source=ip_address("203.0.113.66"), client=ip_address("203.0.113.66"))
CAME_IN = replace(LEFT, source=FLOW.source, destination=MAIL.public, server=MAIL.target, client=FLOW.source)
TWO, ONE = frozenset({"eth0", "wg0"}), frozenset({"eth0"})


def opened(bench: Bench, *others: Flow) -> None:
    """Have the 1:1 guest have opened a connection, which has no label, beside others that have ours."""
    bench.connections.flows, bench.connections.labels = [LEFT, *others], {LEFT: 0}


def test_what_a_guest_opened_ends_with_its_public_address(bench: Bench) -> None:
    bench.reconcile(STATE)
    opened(bench, FLOW)
    bench.reconcile(STATE)
    assert bench.connections.flows == [LEFT, FLOW]
    bench.reconcile(without(STATE, MAIL))
    assert bench.connections.flows == [FLOW]


def test_so_it_does_where_the_address_went_while_no_daemon_ran(bench: Bench) -> None:
    bench.reconcile(STATE)
    opened(bench, FLOW)
    bench.begin()
    bench.reconcile(STATE)
    assert bench.connections.flows == [LEFT, FLOW]
    bench.begin()
    bench.reconcile(without(STATE, MAIL))
    assert bench.connections.flows == [FLOW]


def test_so_it_does_where_the_rules_were_flushed_too_and_a_record_is_left(bench: Bench) -> None:
    bench.reconcile(STATE)
    opened(bench, FLOW)
    bench.begin()
    bench.kernel.wipe()
    bench.host.result = ApplyResult(renamings=frozenset({MAIL.renaming}))
    bench.reconcile(without(STATE, MAIL))
    assert bench.connections.flows == [FLOW]


def test_so_it_does_when_everything_is_taken_away_and_nothing_but_a_record_is_left(bench: Bench) -> None:
    opened(bench)
    bench.host.result = ApplyResult(renamings=frozenset({MAIL.renaming}))
    bench.reconciler.remove(Cause())
    assert bench.connections.flows == []


@pytest.mark.parametrize("begun", [False, True], ids=["by the daemon", "by another program"])
def test_so_it_does_when_everything_is_taken_away(bench: Bench, *, begun: bool) -> None:
    bench.reconcile(STATE)
    opened(bench, FLOW)
    if begun:
        bench.begin()
    bench.reconciler.remove(Cause())
    assert bench.connections.flows == []


def test_what_guests_opened_ends_once_fewer_uplinks_are_configured(bench: Bench) -> None:
    bench.reconcile(replace(STATE, uplinks=TWO), ask(uplinks=TWO))
    opened(bench, ROUTED_LEFT, CAME_IN, FLOW)
    bench.reconcile(replace(STATE, uplinks=ONE), ask(uplinks=ONE, reloaded=True))
    assert bench.connections.flows == [CAME_IN, FLOW]


@pytest.mark.parametrize(
    ("before", "named_before", "after", "named_after"),
    [
        pytest.param(TWO, frozenset(), ONE, frozenset(), id="a link that goes by itself"),
        pytest.param(ONE, ONE, TWO, TWO, id="one more"),
        pytest.param(TWO, frozenset(), TWO, TWO, id="those that were found are named"),
    ],
)
def test_what_guests_opened_goes_on_where_no_uplink_is_taken_out_of_the_configuration(
    bench: Bench,
    before: frozenset[str],
    named_before: frozenset[str],
    after: frozenset[str],
    named_after: frozenset[str],
) -> None:
    bench.reconcile(replace(STATE, uplinks=before), ask(uplinks=named_before))
    opened(bench, ROUTED_LEFT)
    bench.reconcile(replace(STATE, uplinks=after), ask(uplinks=named_after, reloaded=True))
    assert bench.connections.flows == [LEFT, ROUTED_LEFT]


@pytest.mark.parametrize("named", [True, False])
def test_what_guests_opened_ends_after_a_start_with_fewer_uplinks_if_they_are_configured(
    bench: Bench, *, named: bool
) -> None:
    bench.reconcile(replace(STATE, uplinks=TWO), ask(uplinks=TWO))
    opened(bench, CAME_IN)
    bench.begin()
    bench.reconcile(replace(STATE, uplinks=TWO), ask(uplinks=TWO))
    assert bench.connections.flows == [LEFT, CAME_IN]
    bench.begin()
    bench.reconcile(replace(STATE, uplinks=ONE), ask(uplinks=ONE if named else frozenset()))
    assert bench.connections.flows == ([CAME_IN] if named else [LEFT, CAME_IN])


STRANGER = Flow(
    Protocol.TCP,
    *(ip_address("203.0.113.9"), ip_address("10.0.0.2"), 80),
    *(ip_address("10.0.0.2"), 80),
    *(ip_address("203.0.113.9"), 5000),
)


@pytest.fixture
def crossed(bench: Bench) -> Bench:
    """A connection crosses the host, without our label, that was not begun while rules were there to refuse it."""
    bench.host.confines = frozenset({Family.IPV4})
    bench.reconcile(STATE)
    bench.connections.flows, bench.connections.labels = [STRANGER], {STRANGER: 0}
    return bench


def test_what_passed_while_no_rules_kept_the_host_from_being_a_router_ends(crossed: Bench) -> None:
    crossed.kernel.wipe()
    told = crossed.reconcile(STATE)
    assert "ended 1 connections that passed while rules were missing: nothing was forwarded before" in told
    assert crossed.connections.flows == []


def test_so_it_does_after_a_start(crossed: Bench) -> None:
    crossed.begin()
    crossed.reconcile(STATE)
    assert crossed.connections.flows == []


def test_so_it_does_where_no_exposure_is_live(crossed: Bench) -> None:
    crossed.reconcile(Desired())
    crossed.connections.flows = [STRANGER]
    crossed.kernel.wipe()
    crossed.reconcile(Desired())
    assert crossed.connections.flows == []


def test_nobody_looks_for_it_while_the_rules_are_there(crossed: Bench) -> None:
    crossed.reconcile(STATE)
    crossed.reconcile(without(STATE, MAIL))
    assert crossed.connections.flows == [STRANGER]


def test_where_the_host_forwarded_before_it_goes_on(bench: Bench) -> None:
    bench.reconcile(STATE)
    bench.connections.flows, bench.connections.labels = [STRANGER], {STRANGER: 0}
    bench.kernel.wipe()
    bench.reconcile(STATE)
    assert bench.connections.flows == [STRANGER]
