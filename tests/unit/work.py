"""How much work a call does, in lines of Python that it runs: the same on every machine, however busy."""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any


def lines_run(call: Callable[[], object]) -> int:
    """Run `call`, and count the lines it runs, each time anew that a loop comes back to one."""
    count = 0

    def trace(_frame: FrameType, event: str, _argument: Any) -> Callable[..., Any]:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


def grows_no_faster(work: Callable[[int], Callable[[], object]], size: int) -> bool:
    """Whether twice the size costs about twice the work; what compares each with every other costs four times.

    As small as it is, a few hundred show a loop of one line over all that came before, beside a hundred lines for each.
    """
    return lines_run(work(2 * size)) < 2.5 * lines_run(work(size))
