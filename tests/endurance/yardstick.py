"""A piece of work that is always the same: how much CPU time it takes shows how much other work slows the processor.

What runs beside it on a machine (another core's use of the caches, the other half of a core, another guest of its
hypervisor) makes every program need more CPU time for the same work. What is compared over an hour is given in it.
"""

import json
import statistics
import time
from typing import Final

# Much like what the daemon does most: a listing of rules is read. It takes some ten milliseconds.
_LISTING: Final = json.dumps([{"rule": {"chain": f"any.tcp.{port}", "expr": [{"dnat": port}]}} for port in range(1000)])
_TIMES: Final = 10
# A single time is often twice another, where this thread was interrupted in it.
_TRIES: Final = 5


def cpu_seconds() -> float:
    """Do it some times, and tell the CPU seconds that it took, the median; other threads do not count."""
    return statistics.median(_once() for _ in range(_TRIES))


def _once() -> float:
    began = time.thread_time()
    for _ in range(_TIMES):
        json.dumps(json.loads(_LISTING), sort_keys=True)
    return time.thread_time() - began
