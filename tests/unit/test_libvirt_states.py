"""An active domain runs here, unless libvirt's own words say that its CPUs are elsewhere, or nowhere yet."""

import libvirt
import pytest

from fwdaemon.core.inventory import Move
from fwdaemon.hypervisor.xml import DomainState, domain_state, move

PAUSED = {
    name.removeprefix("VIR_DOMAIN_PAUSED_"): number
    for name, number in vars(libvirt).items()
    if name.startswith("VIR_DOMAIN_PAUSED_")
}
POSTCOPY = {libvirt.VIR_DOMAIN_RUNNING_POSTCOPY, libvirt.VIR_DOMAIN_RUNNING_POSTCOPY_FAILED}
NOT_HERE = {
    "MIGRATION": DomainState.MIGRATING,
    "STARTING_UP": DomainState.STARTING,
    "POSTCOPY": DomainState.LEFT,
    "POSTCOPY_FAILED": DomainState.FAILED,
}


@pytest.mark.parametrize("reason", sorted(PAUSED))
def test_a_paused_guest_stays_open_unless_another_host_has_its_cpus(reason: str) -> None:
    assert domain_state(libvirt.VIR_DOMAIN_PAUSED, PAUSED[reason]) is NOT_HERE.get(reason, DomainState.PAUSED)


@pytest.mark.parametrize("reason", range(20))
def test_one_that_runs_is_here_whyever_it_does(reason: int) -> None:
    running = domain_state(libvirt.VIR_DOMAIN_RUNNING, reason)
    assert running is (DomainState.FETCHING if reason in POSTCOPY else DomainState.HERE)
    assert move(running, ran_here=False, received=True) is None
    assert domain_state(libvirt.VIR_DOMAIN_CRASHED, reason) is DomainState.CRASHED
    assert domain_state(libvirt.VIR_DOMAIN_PMSUSPENDED, reason) is DomainState.HERE
    assert domain_state(libvirt.VIR_DOMAIN_SHUTDOWN, reason) is DomainState.ENDING


SHUT_OFF = {
    libvirt.VIR_DOMAIN_SHUTOFF_CRASHED: DomainState.ENDED,
    libvirt.VIR_DOMAIN_SHUTOFF_FAILED: DomainState.ENDED,
    libvirt.VIR_DOMAIN_SHUTOFF_MIGRATED: DomainState.GONE,
}


@pytest.mark.parametrize("reason", range(20))
def test_the_end_says_whether_another_host_has_it_or_it_may_be_rebooting(reason: int) -> None:
    assert domain_state(libvirt.VIR_DOMAIN_SHUTOFF, reason) is SHUT_OFF.get(reason, DomainState.DOWN)


def test_a_reason_of_a_newer_libvirt_is_no_error() -> None:
    assert domain_state(libvirt.VIR_DOMAIN_PAUSED, 99) is DomainState.PAUSED


def test_which_way_it_goes_depends_on_where_it_was() -> None:
    assert move(DomainState.MIGRATING, ran_here=False, received=True) is Move.HERE
    assert move(DomainState.MIGRATING, ran_here=True, received=False) is Move.AWAY
    assert move(DomainState.LEFT, ran_here=False, received=False) is Move.AWAY
    assert move(DomainState.HERE, ran_here=True, received=False) is None


@pytest.mark.parametrize("ran_here", [True, False])
def test_only_one_that_arrived_paused_and_never_ran_here_is_not_here(*, ran_here: bool) -> None:
    assert move(DomainState.PAUSED, ran_here=ran_here, received=False) is None
    assert move(DomainState.PAUSED, ran_here=ran_here, received=True) is (None if ran_here else Move.ARRIVED)


def test_the_receiving_host_of_a_failed_post_copy_keeps_the_guest_that_ran_there() -> None:
    assert move(DomainState.FAILED, ran_here=True, received=True) is None
    assert move(DomainState.FAILED, ran_here=False, received=True) is Move.HERE


@pytest.mark.parametrize("ran_here", [True, False])
def test_the_other_host_of_a_failed_post_copy_has_left_it(*, ran_here: bool) -> None:
    assert move(DomainState.FAILED, ran_here=ran_here, received=False) is Move.AWAY
