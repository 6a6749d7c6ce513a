"""Metrics as text, in Prometheus' own format; it is also where labels of any text are escaped.

https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from collections.abc import Iterable
from typing import Final

from fwdaemon.metrics.figures import Metric

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


def text_of(metrics: Iterable[Metric]) -> bytes:
    """Write metrics. Takes a while where there are many, and at the first call, which loads the library."""
    from prometheus_client import CollectorRegistry, generate_latest  # noqa: PLC0415  an extra, 60 ms
    from prometheus_client.core import Metric as Exposed  # noqa: PLC0415
    from prometheus_client.registry import Collector  # noqa: PLC0415

    class Once(Collector):
        def collect(self) -> Iterable[Exposed]:
            for metric in metrics:
                exposed = Exposed(metric.name, metric.help, metric.type)
                for sample in metric.samples:
                    exposed.add_sample(metric.name + sample.suffix, dict(sample.labels), sample.value)
                yield exposed

    registry = CollectorRegistry()
    registry.register(Once())
    return generate_latest(registry)
