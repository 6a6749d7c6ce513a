"""Metrics as text, in Prometheus' own format; it is also where labels of any text are escaped.

https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from fwdaemon.config.model import Config
from fwdaemon.core.types import Origin
from fwdaemon.errors import ConfigError, Problem
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


# The library that metrics need, and others do not have to have.
_LIBRARY: Final = "prometheus_client"
_MISSING: Final = (
    "metrics: needs the Python library prometheus-client, which is not installed; install it, on Debian with"
    ' "apt install python3-prometheus-client", elsewhere with "pip install kvm-portfwd[metrics]", or remove the table'
)


def satisfied(config: Config) -> Config:
    """Give the configuration back, if what it asks for is installed.

    Raises:
        ConfigError: it asks for metrics, and their library is not there.

    """
    metrics = config.metrics
    if (metrics.textfile or metrics.listen) and find_spec(_LIBRARY) is None:
        origin = metrics.origin or Origin(Path(), 1)
        raise ConfigError([Problem(origin.file, origin.line, _MISSING)])
    return config
