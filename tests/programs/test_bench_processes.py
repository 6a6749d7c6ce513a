"""What the benchmark measures of processes: theirs, their children's, and those that ended."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bench.processes import cpu_seconds, fine_cpu_seconds, memory, tree, wait_quiet

# Burns a tenth of a second of CPU time, says so, and waits to be asked to end.
_WORK = "import sys, time\nwhile time.process_time() < 0.1: pass\nprint('done', flush=True)\nsys.stdin.read()"
_PARENT = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {_WORK!r}], check=True)"
_BURNT = 0.08  # user and system time are each rounded down to a tick


@contextmanager
def running(program: str) -> Iterator[int]:
    """Run Python until its work is done; give its process number."""
    argv = [sys.executable, "-c", program]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603  ours
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "done\n"
        yield process.pid
        process.stdin.close()


def test_the_tree_is_the_process_and_all_below_it() -> None:
    with running(_PARENT) as pid:
        first, second = tree(pid)
        assert first == pid
        assert list(tree(second)) == [second]


@pytest.mark.parametrize("program", [_WORK, _PARENT], ids=["its own", "its child's"])
def test_cpu_time_is_counted(program: str) -> None:
    with running(program) as pid:
        assert cpu_seconds(pid) >= _BURNT
        assert sum(map(fine_cpu_seconds, tree(pid))) == pytest.approx(cpu_seconds(pid), abs=0.05)


def test_cpu_time_of_a_child_that_ended_still_counts() -> None:
    before = cpu_seconds(os.getpid())
    with running(_WORK):
        pass
    assert cpu_seconds(os.getpid()) - before >= _BURNT


def test_memory_of_a_child_counts() -> None:
    with running(_WORK) as alone, running(_PARENT) as pair:
        assert memory(pair).rss > 1.5 * memory(alone).rss
        assert 0 < memory(pair).private <= memory(pair).pss <= memory(pair).rss


def test_a_process_that_only_waits_is_quiet() -> None:
    with running(_WORK) as pid:
        wait_quiet(pid)
        assert list(tree(pid)) == [pid]


def test_a_process_that_works_is_not_quiet() -> None:
    with running(f"print('done', flush=True)\nwhile True: pass\n{_WORK}") as pid:
        try:
            with pytest.raises(TimeoutError, match=f"process {pid} is still busy"):
                wait_quiet(pid, within=0.75, quiet_for=0.5)
        finally:
            os.kill(pid, 9)
