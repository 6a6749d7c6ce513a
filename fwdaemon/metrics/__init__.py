"""Metrics, for a Prometheus: in a file that its node exporter reads, and by HTTP.

- `figures`: what is counted as the daemon works, and from that and a status to metrics. Pure.
- `exposition`: metrics as text and as answers by HTTP, by `prometheus_client`, an extra; it says if that is not there.
- `listener`: who is answered by HTTP, and the file. `reporter`: both as a part of the daemon.
"""
