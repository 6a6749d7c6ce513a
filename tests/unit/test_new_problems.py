from pathlib import Path

from fwdaemon.audit.throttle import NewProblems
from fwdaemon.core.exposures import Owner
from fwdaemon.core.report import Fault, FaultKind
from fwdaemon.core.state import Waiting
from fwdaemon.core.types import Origin
from tests.unit import saying

ORIGIN = Origin(Path("portfwd.toml"), 1)
NO_ADDRESS = Waiting(Owner("web1"), saying.NO_ADDRESS, ORIGIN)
NO_BRIDGE = Fault(FaultKind.ROUTE, ("203.0.113.64/29", "public"), "there is no bridge virbr1")
STOPPED = Waiting(Owner("web1"), saying.STOPPED, ORIGIN, stopped=True)


def test_what_waits_is_said_once_and_again_when_it_comes_back() -> None:
    new_problems = NewProblems()
    assert new_problems.of_waiting([NO_ADDRESS, NO_ADDRESS], (), everything=False) == [NO_ADDRESS]
    assert new_problems.of_waiting([NO_ADDRESS], (), everything=False) == []
    assert new_problems.of_waiting([], (), everything=False) == []
    assert new_problems.of_waiting([NO_ADDRESS], (), everything=False) == [NO_ADDRESS]


def test_that_a_domain_stopped_is_said_unless_its_exposures_go_with_it() -> None:
    assert NewProblems().of_waiting([STOPPED], [STOPPED.owner], everything=False) == []
    assert NewProblems().of_waiting([STOPPED], [], everything=False) == [STOPPED]
    assert NewProblems().of_waiting([STOPPED], [STOPPED.owner], everything=True) == [STOPPED]


def test_a_fault_is_said_once_it_has_lasted() -> None:
    new_problems = NewProblems(1.0)
    assert new_problems.of_faults([NO_BRIDGE], 10.0, everything=False) == []
    due = new_problems.ends
    assert due == 11.0
    assert new_problems.of_faults([NO_BRIDGE], 11.0, everything=False) == [NO_BRIDGE]
    assert new_problems.of_faults([NO_BRIDGE], 12.0, everything=False) == []
    assert (new_problems.ends, new_problems.of_faults([], 13.0, everything=False)) == (None, [])


def test_a_fault_that_passes_is_never_said() -> None:
    new_problems = NewProblems(1.0)
    new_problems.of_faults([NO_BRIDGE], 10.0, everything=False)
    new_problems.of_faults([], 10.5, everything=False)
    assert new_problems.of_faults([NO_BRIDGE], 11.0, everything=False) == []


def test_a_fault_of_the_start_is_said_at_once() -> None:
    new_problems = NewProblems(1.0)
    assert new_problems.of_faults([NO_BRIDGE], 10.0, everything=True) == [NO_BRIDGE]
    assert new_problems.of_faults([NO_BRIDGE], 10.1, everything=True) == []
