"""The benchmark's arithmetic, its tables, and its forwards in both forms."""

import json
from dataclasses import asdict, replace

import pytest

from bench.figure import NONE, Earlier, Figure, Series, Spread, Unit, Versus, Want, ratios
from bench.setting import take_turns
from bench.table import cell, document, number, rows, section, summary
from bench.traffic import longest_outage

FASTER = Series("ours", Unit.SECONDS, {10: [0.011, 0.010, 0.030], 1000: [0.020, 0.022, 0.024]})
PLAIN = Series("plain", Unit.SECONDS, {NONE: [0.005]})


def some_figure(*wants: Want) -> Figure:
    return Figure("apply", "From nothing", "debian12-legacy", "How.", (FASTER, PLAIN), wants)


def test_a_spread_is_the_median_between_its_quartiles() -> None:
    assert Spread.of([5.0, 1.0, 2.0, 4.0, 3.0]) == Spread(3.0, 2.0, 4.0)


def test_one_run_has_no_spread() -> None:
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0)


def test_runs_that_were_taken_in_turn_are_compared_with_each_other() -> None:
    # The machine was ten times slower in the middle.
    assert ratios([2.0, 20.0, 2.2], [1.0, 10.0, 1.0], 100) == pytest.approx([200, 200, 220])


def test_a_run_without_its_partner_is_no_ratio() -> None:
    with pytest.raises(ValueError, match="shorter"):
        ratios([1.0, 2.0], [1.0])


@pytest.mark.parametrize(
    ("want", "met"),
    [
        (Want("at most", [1.3, 1.0, 9.0], 1.3), True),
        (Want("at most", [1.31], 1.3), False),
        (Want("at least", [100.0, 100.0, 1.0], 100.0, at_least=True), True),
        (Want("at least", [99.0], 100.0, at_least=True), False),
    ],
)
def test_a_want_is_met_up_to_its_limit(want: Want, *, met: bool) -> None:
    assert want.met is met


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.01234, "0.0123"), (1.0, "1.00"), (12.345, "12.3"), (99.96, "100"), (123.4, "123"), (12345, "12,345")],
)
def test_three_figures_count(value: float, text: str) -> None:
    assert number(value) == text


def test_the_worst_is_told_where_it_is_asked_for() -> None:
    assert cell(Spread(0.02, 0.01, 0.03), Unit.SECONDS, 0.4) == "20.0 ms (10.0 to 30.0, at worst 400)"
    worst = replace(FASTER, worst=True)
    figure = replace(some_figure(), series=(worst,), counted="connections")
    assert "| connections | 10 | 1,000 |" in section(figure)
    assert "at worst 30.0)" in section(figure)


@pytest.mark.parametrize(
    ("lines", "seconds"),
    [
        ([], 0),
        (["up 0 1"], 0),
        (["down 1 2", "up 5 6"], 5),
        (["up 0.5 1", "down 2 3", "up 3 4", "down 10 11", "up 14 15", "down 20 21", "up 21 22", "down 30 31"], 5),
    ],
)
def test_the_longest_outage_counts_from_answer_to_answer(lines: list[str], seconds: float) -> None:
    assert longest_outage(lines) == seconds


@pytest.mark.parametrize(
    ("spread", "unit", "text"),
    [
        (Spread(0.0123, 0.0119, 0.013), Unit.SECONDS, "12.3 ms (11.9 to 13.0)"),
        (Spread(1.5, 0.9, 2), Unit.SECONDS, "1.50 s (0.9 to 2.00)"),
        (Spread(0.00004, 0.00003, 0.00005), Unit.SECONDS, "40.0 µs (30.0 to 50.0)"),
        (Spread(0.0, 0.0, 0.0), Unit.SECONDS, "0 µs (0 to 0)"),
        (Spread(9337, 5852, 10484), Unit.PER_SECOND, "9,337/s (5,852 to 10,484)"),
        (Spread(2.31e9, 2.13e9, 2.4e9), Unit.BITS_PER_SECOND, "2.31 Gbit/s (2.13 to 2.40)"),
        (Spread(64 * 2**20, 64 * 2**20, 65 * 2**20), Unit.BYTES, "64.0 MiB (64.0 to 65.0)"),
        (Spread(0.55, 0.5, 0.6), Unit.PERCENT_OF_A_CORE, "0.55% of a core (0.5 to 0.6)"),
    ],
)
def test_a_cell_is_in_the_unit_that_suits_the_median(spread: Spread, unit: Unit, text: str) -> None:
    assert cell(spread, unit) == text


def test_a_table_has_a_column_for_each_number_of_forwards() -> None:
    lines = section(some_figure()).splitlines()
    assert lines[lines.index("How.") + 2 :] == [
        "| forwards | none | 10 | 1,000 |",
        "| --- | --- | --- | --- |",
        "| ours |  | 11.0 ms (10.5 to 20.5) | 22.0 ms (21.0 to 23.0) |",
        "| plain | 5.00 ms (5.00 to 5.00) |  |  |",
    ]


def test_sides_have_a_column_each_and_are_compared_with_the_first() -> None:
    theirs = replace(FASTER, label="connect, p99, theirs", samples={10: [0.022, 0.020, 0.060]})
    figure = replace(
        some_figure(),
        series=(replace(FASTER, label="connect, p99, ours"), theirs),
        sides=("ours", "theirs"),
        versus=(Versus("connect, p99", 10, "theirs", [2.0, 2.0, 2.0]),),
    )
    lines = section(figure).splitlines()
    assert lines[lines.index("How.") + 2 :] == [
        "|  | forwards | ours | theirs |",
        "| --- | --- | --- | --- |",
        "| connect, p99 | 10 | 11.0 ms (10.5 to 20.5) | 22.0 ms (21.0 to 41.0) |",
        "| connect, p99 | 1,000 | 22.0 ms (21.0 to 23.0) |  |",
        "",
        "How many times better ours is:",
        "",
        "|  | forwards | theirs |",
        "| --- | --- | --- |",
        "| connect, p99 | 10 | 2.00 (2.00 to 2.00) |",
    ]


def test_a_vertical_line_does_not_end_a_cell() -> None:
    assert rows(["a"], [["b|c"]]).splitlines()[-1] == "| b&#124;c |"


def test_a_missed_want_stands_out() -> None:
    text = section(
        some_figure(Want("at most 2 times", [2, 2.5, 3], 2.0, " times"), Want("at least 1", [1.0], 1.0, at_least=True))
    )
    assert "| at most 2 times | 2.50 times (2.25 to 2.75) | **missed** |" in text
    assert "| at least 1 | 1.00 | met |" in text


def test_the_page_tells_the_machine_and_shows_the_plots_there_are() -> None:
    other = Figure("idle", "Nothing happens", "debian12-iptables", "How.", (PLAIN,))
    page = document([some_figure(), other], {"kernel": "6.18"}, {"apply-debian12-legacy": "apply.svg"})
    assert "| kernel | 6.18 |" in page
    assert page.count("![") == 1
    assert "![From nothing](apply.svg)" in page


def test_each_reason_stands_once_below_what_was_missed_for_it() -> None:
    wants = (
        Want("fast", [2.0], 1.0, because="Python."),
        Want("faster", [3.0], 1.0, because="Python."),
        Want("small", [1.0], 2.0, because="Not told, as it is met."),
        Want("bare", [2.0], 1.0),
    )
    text = section(Figure("apply", "N forwards", "a-host", "", (FASTER,), wants))
    assert text.endswith("| **missed** |\n\nMissed: fast; faster. Python.")


def test_a_summary_has_a_row_for_each_want() -> None:
    figure = Figure(
        "apply", "N forwards", "a-host", "", (), (Want("fast", [2.0], 1.3, " times"), Want("small", [1], 2))
    )
    assert summary([figure]).splitlines()[2:] == [
        "| N forwards, a-host | fast | 2.00 times | **missed** |",
        "| N forwards, a-host | small | 1.00 | met |",
    ]


def test_an_earlier_run_stands_beside_this_one_where_both_measured_the_same() -> None:
    machine = {"kvm-portfwd": "0.1.0, 0a9adff", "when": "2026-11-22"}
    slower = Series("ours", Unit.SECONDS, {10: [0.022, 0.020, 0.060], 100: [1.0]})
    figures = [asdict(replace(some_figure(), series=(slower, Series("gone", Unit.BYTES, {10: [1]}))))]
    before = Earlier.of(json.dumps({"machine": machine, "figures": figures}))
    page = document([some_figure()], {}, {}, before)
    assert "Version 0.1.0, 0a9adff, measured on the same machine at 2026-11-22" in page
    (line,) = [line for line in page.splitlines() if line.startswith("| apply-debian12-legacy, ")]
    assert line == (
        "| apply-debian12-legacy, 10 forwards | ours | 22.0 ms (21.0 to 41.0) | 11.0 ms (10.5 to 20.5) | 0.5 |"
    )


def test_hosts_take_turns_and_the_first_turn_does_not_count() -> None:
    order: list[int] = []

    def once(size: int) -> float:
        order.append(size)
        return float(len(order))

    assert take_turns({10: 2, 1000: 1}, once) == {10: [3.0, 5.0], 1000: [4.0]}
    assert order == [10, 1000, 10, 1000, 10]
