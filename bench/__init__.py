"""The benchmark: how fast the daemon is, and what it costs, on real hosts in namespaces. `scripts/bench` runs it."""
