"""Metrics, for a Prometheus: in a file that its node exporter reads, and by HTTP.

- `tally`: what is counted as the daemon works. `figures`: from a status and a tally to metrics. Both are pure.
- `exposition`: metrics as text, by `prometheus_client`, which is an extra: `requirement` sees that it is there.
- `textfile`, `listener`: the two ways out. `reporter`: both as a part of the daemon.

prometheus_client has a server too, but one with a thread for each client and no bounds.
"""
