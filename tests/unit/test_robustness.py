"""What the long run calls a failure, how its workers keep in step, and the page of all figures."""

import random
import threading
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from tests.endurance.figures import MIB, Figures, Part, Rest
from tests.endurance.pace import Pace
from tests.fuzz import figures as fuzz
from tests.fuzz.figures import Fuzzed
from tests.referee import figures as referee
from tests.referee.faults import FAULTS, SOURCE_STOPPED, TARGET_STOPPED
from tests.referee.figures import Round
from tests.referee.run import Length as Rounds
from tests.referee.run import draws
from tests.robustness.__main__ import Length, commands
from tests.robustness.page import store
from tests.robustness.record import Record, Stamp
from tests.turnover import figures as turnover
from tests.turnover.beside import Asked, Question
from tests.turnover.figures import Late, Stay

_HELD = {"socket": 9, "threads": 9}
_STAMP = Stamp("2026-11-21", "0123456789ab")


def rest(mib: float = 40, **held: int) -> Rest:
    return Rest(int(mib * MIB), int(mib * MIB), _HELD | held)


def part(effort: float = 1.0, seconds: float = 0.1) -> Part:
    return Part(healed=[seconds] * 100, cpu=[0.05], effort=[effort])


def figures(after: Rest, last: Part) -> Figures:
    return Figures(rest=[rest(), after], calm=[part(), last], tenths=[part(), part()], opened=1, closed=1)


@pytest.mark.parametrize(
    ("after", "last", "told"),
    [
        (rest(41.9), part(1.09), ""),
        (rest(42.1), part(), "memory: +2.1 MiB, not within 2 MiB"),
        (rest(37.9), part(), "memory: -2.1 MiB, not within 2 MiB"),
        (rest(socket=10), part(), "socket: 9 before, 10 after"),
        (rest(pipe=1), part(), "pipe: 0 before, 1 after"),
        (rest(), part(seconds=0.16), "at rest: 1.60 times as long to heal at the end, not 1.5 at most"),
        (rest(), part(1.2), "at rest: 1.20 times as much CPU for a wipe at the end, not 1.1 at most"),
    ],
)
def test_what_is_more_or_slower_at_the_end_is_a_failure(after: Rest, last: Part, told: str) -> None:
    assert figures(after, last).faults() == ([told] if told else [])


def test_a_run_that_broke_off_is_a_failure() -> None:
    assert Figures(failure="the daemon ended").faults() == ["the daemon ended", "the run did not come to its end"]


def test_fewer_wipes_than_asked_for_are_a_failure() -> None:
    counted = figures(rest(), part())
    counted.asked, counted.wipes = {"wipes": 3}, {"nft-flush-map": 2}
    assert counted.faults() == ["2 wipes in the time there was, not 3"]


def test_a_run_in_which_nobody_came_or_went_is_a_failure() -> None:
    counted = figures(rest(), part())
    counted.closed = 0
    assert counted.faults() == ["of guests that come and go 1 rules were seen to come and 0 to go"]


def turned_over(after: Rest, late: float = 0.1, left: tuple[str, ...] = (), twice: int = 0) -> turnover.Figures:
    stays = [Stay(0.3, -0.1, 0.02, 0.02, 1.1), Stay(0.3, 0.05, late, late - 0.05, 1.1)]
    return turnover.Figures(2, 50, 20, 600, 30, stays=stays, rest=[rest(), after], left=list(left), twice=twice)


def asked(*times: tuple[float, float]) -> Asked:
    """What was asked and answered at these times, from 0.0 on; the answer before that was there at once."""
    told = Asked(lambda: None, 0.01)
    for before, (begin, end) in zip((0.0, *(end for _, end in times)), times, strict=False):
        told.note(Question(before, begin, end))
    return told


@pytest.mark.parametrize(
    ("begin", "end", "silent"),
    [
        (0.0, 9.0, 0.99 + 0.5),  # from the answers before on
        (0.5, 9.0, 0.5 + 0.5),
        (0.5, 0.75, 0.25),
        (0.005, 0.5, 0.49),
        (1.0, 3.0, 0.0),  # all were answered in time, or there was no answer yet
        (1.0, 3.25, 0.25),
        (3.5, 9.0, 0.0),
    ],
)
def test_libvirt_is_silent_from_the_answer_before_one_that_took_long(begin: float, end: float, silent: float) -> None:
    libvirt = asked((0.009, 0.01), (0.02, 1.0), (1.01, 1.02), (2.99, 3.0), (3.01, 3.5), (3.51, 3.529))
    assert libvirt.silence(begin, end) == pytest.approx(silent)
    assert libvirt.longest(1.5, 2.5) == pytest.approx(0.01)
    assert libvirt.longest(9.0, 10.0) == 0.0
    assert len(libvirt.seconds(2.0)) == 3


def test_an_answer_that_is_still_to_come_is_silence_until_now() -> None:
    begun, answer = threading.Event(), threading.Event()

    def question() -> None:
        begun.set()
        assert answer.wait(10)

    before = time.monotonic()
    with Asked(question, 0.001) as libvirt:
        assert begun.wait(10)
        since = time.monotonic()
        assert libvirt.silence(since, since + 5) == pytest.approx(5)
        assert libvirt.silence(before, since + 5) == pytest.approx(libvirt.longest(before, since + 5), abs=1)
        answer.set()
    assert libvirt.silence(since + 20, since + 25) == 0.0
    assert libvirt.seconds(before)


def test_a_domain_that_is_reached_late_and_what_is_left_of_one_are_failures() -> None:
    assert turned_over(rest()).faults() == []
    late = "domains were reached later than 100 ms"
    assert turned_over(rest(), late=0.11).faults() == [f"1 of 2 {late}, 0 of them without libvirt's part in it"]
    assert turned_over(rest(), late=0.16).faults() == [f"1 of 2 {late}, 1 of them without libvirt's part in it"]
    assert turned_over(rest(), late=0.11).wrong() == []
    assert turned_over(rest(43, pipe=1), left=("domain: ci-1",), twice=1).faults() == [
        "left over: domain: ci-1",
        "1 ports were assigned twice",
        "pipe: 0 before, 1 after",
        "memory: +3.0 MiB, not within 2 MiB",
    ]
    assert turnover.Figures(failures=["ci-1: no"]).faults() == ["ci-1: no", "the run did not come to its end"]


def test_what_domains_that_come_and_go_cost_is_on_the_page(tmp_path: Path) -> None:
    page, counted = tmp_path / "robustness.md", turned_over(rest(41))
    counted.loads, counted.assigned = [1.0, 2.0], 4
    counted.rss, counted.private = [int(40 * MIB)] * 3 + [int(41 * MIB)] * 9, [int(30 * MIB)] * 20
    counted.beside, counted.lost = {"page": [0.002, 0.5], "locked": [0.001]}, ((1.0, 2.0),)
    counted.each_late = [Late("ci-1", counted.stays[0], silent=0.25, page=0.002, used=0.01, ended=1)]
    store(page, Record("turnover", "legacy", _STAMP, "Linux", counted.record()))
    text = page.read_text(encoding="utf-8")
    assert "| Domains that come and go: libvirt on iptables-legacy | 2 domains, 50 a minute | 4 ports | 0 |" in text
    assert "The daemon took 5.0 % of a processor, 15000 ms for each domain." in text
    assert "The machine's load was 1.5, from 1 to 2." in text
    assert "tenth by tenth, 40.0, 40.0, 40.0, 41.0, 41.0, 41.0, 41.0, 41.0, 41.0, 41.0 MiB." in text
    assert "| beside: a page through a forward that has long been there | 0.251 | 0.500 | 0.500 |" in text
    assert "| the same without libvirt's part | 0.035 | 0.050 | 0.050 |" in text
    assert "and had written itself 30.0, 30.0," in text
    assert "| of that written and not shared | 0.0 MiB | 0.0 MiB | |" in text
    (late,) = counted.record()["each_late"]
    assert late == {
        "name": "ci-1",
        "ended": 1,
        "start": 0.3,
        "told": -0.1,
        "late": 0.02,
        "own": 0.02,
        "closed": 1.1,
        "silent": 0.25,
        "page": 0.002,
        "used": 0.01,
    }
    old = counted.record() | {"beside": {}, "rest": [{"rss": 1, "pss": 1, "held": {}}] * 2}
    assert "libvirt was asked for nothing but its version" in "\n".join(
        turnover.section({key: value for key, value in old.items() if key not in {"private", "each_late"}})
    )


def test_what_went_wrong_in_a_fleet_is_on_the_page(tmp_path: Path) -> None:
    page = tmp_path / "robustness.md"
    migrated = Round("none", "before", 1.0, moved=True, back=1.5, unheld=0.3, taken=None, went_on=True)
    elsewhere = Round("none", "started elsewhere", 20.0, moved=True, back=0.5, unheld=4, taken=14.04, went_on=None)
    counted = referee.Figures(2, looks=5000, seconds=60, watched=50, gap=0.31, rounds=[migrated, elsewhere])
    assert counted.faults() == []
    twice = referee.added(counted.record(), counted.record())
    for figures, rounds, told in (
        (counted.record(), 2, "| none | 2 | 2 | 1 of 1 | 1.0 | 1.5 | 4.0 | 14.0 | 14.0 |"),
        (twice, 4, "| none | 4 | 4 | 2 of 2 | 1.0 | 1.5 | 4.0 | 14.0 | 14.0 |"),
        (twice, 4, "\n4 rounds of 2 runs in 120 s; 10,000 looks"),
    ):
        store(page, Record("referee", "nftables", _STAMP, "Linux", figures))
        text = page.read_text(encoding="utf-8")
        assert f"libvirt on nftables | {rounds} rounds | {rounds * 2500:,} looks | 0 | 1.5 s |" in text
        assert told in text
        assert "\nFrom one look to the next it took 10 ms on average, and 0.31 s at most.\n" in text
    assert "before 2, copying 0, switching 0, after 0, cancelled 0, started elsewhere 2." in text
    counted.held_twice, counted.announced_twice, counted.asked = 1, 2, 3
    counted.rounds.append(replace(migrated, lost=1, went_on=False))
    counted.rounds[0] = replace(migrated, fault=referee.RESTORED, went_on=False)
    counted.rounds.pop(1)
    assert counted.faults() == [
        *("two hosts had an address 1 times", "two hosts announced an address 2 times"),
        *("daemons had lost the table 1 times", "streams had ended 1 times: none", "2 of 3 rounds came to their end"),
    ]


def test_a_record_of_earlier_faults_says_so(tmp_path: Path) -> None:
    page = tmp_path / "robustness.md"
    for fault, told in (("host stopped", 1), (SOURCE_STOPPED, 0)):
        of_it = Round(fault, "before", 1.0, moved=True, back=1.5, unheld=0.3, taken=None, went_on=True)
        store(page, Record("referee", "nftables", _STAMP, "Linux", referee.Figures(1, rounds=[of_it]).record()))
        assert page.read_text(encoding="utf-8").count("\nThis run is of an earlier commit, with other faults: ") == told


def test_each_fault_of_a_fleet_is_drawn_once_in_each_phase() -> None:
    """And a source is stopped in each; a host that is stopped has no guest started."""
    of_all = [(fault, phase) for fault in FAULTS for phase in (*referee.PHASES, referee.ELSEWHERE)]
    of_all.remove((TARGET_STOPPED, referee.ELSEWHERE))
    drawn = islice(draws(random.Random(1), Rounds(0)), 2 * len(of_all))  # noqa: S311  no secret
    assert sorted(drawn) == sorted(2 * of_all)
    assert {phase for fault, phase in of_all if fault == SOURCE_STOPPED} == {*referee.PHASES, referee.ELSEWHERE}


def test_who_is_ahead_waits_for_who_is_behind() -> None:
    pace = Pace({"wipes": 2, "events": 4}, time.monotonic() + 60)
    turns: list[str] = []

    def work(worker: str) -> None:
        while pace.next(worker):
            turns.append(worker)
            pace.done(worker)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in ("wipes", "events")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(turns) == ["events"] * 4 + ["wipes"] * 2
    assert turns.index("wipes", turns.index("wipes") + 1) > turns.index("events", turns.index("events") + 1)


def test_all_that_was_run_is_on_one_page_and_the_newest_of_each(tmp_path: Path) -> None:
    page = tmp_path / "robustness.md"
    for inputs in (10, 2000):
        told = fuzz.record([Fuzzed("names", 60, inputs, broken=True)])
        store(page, Record("fuzz", "all", _STAMP, "Linux", told))
    told = figures(rest(), part()).record(seed=1)
    store(page, Record("endurance", "nftables", _STAMP, "Linux", told))
    text = page.read_text(encoding="utf-8")
    assert "| Fuzzing: Everything that reads what others wrote | 2,000 inputs in 1 min | 1 targets | 1 |" in text
    assert text.index("### libvirt on nftables") < text.index("| names | 60 s | 2,000 | 1 |")
    assert "2026-11-21, commit 0123456789ab; Linux." in text
    assert {file.name for file in (tmp_path / "robustness").iterdir()} == {"endurance-nftables.json", "fuzz-all.json"}


def test_one_command_runs_everything_unless_less_is_asked_for() -> None:
    length = Length(rounds=5, events=6, wipes=7, domains=4, faults=3, configurations=9, fuzz_seconds=8)
    every = [" ".join(command[2:]) for command in commands(["chaos", "endurance"], [], length)]
    assert every == [
        "tests.chaos --rounds=5 --side=nftables",
        "tests.chaos --rounds=5 --side=iptables",
        "tests.chaos --rounds=5 --side=legacy",
        "tests.endurance --events=6 --wipes=7 --side=nftables",
    ]
    assert [" ".join(command[2:]) for command in commands(["turnover"], [], length)] == [
        "tests.turnover --domains=4 --side=nftables",
        "tests.turnover --domains=4 --side=legacy",
    ]
    assert [" ".join(command[2:]) for command in commands(["referee"], [], length)] == [
        "tests.referee --rounds=3 --side=nftables"
    ]
    assert [" ".join(command[2:]) for command in commands(["packets"], [], length)] == [
        "tests.packets --rounds=9 --side=nftables",
        "tests.packets --rounds=9 --side=legacy",
    ]
    assert [command[-1] for command in commands(["chaos", "fuzz"], ["legacy"], length)] == [
        "--side=legacy",
        "--seconds=8",
    ]
