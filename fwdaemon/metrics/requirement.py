"""The library that metrics need, and others do not have to have."""

from importlib.util import find_spec
from pathlib import Path
from typing import Final

from fwdaemon.config.model import Config, Origin
from fwdaemon.errors import ConfigError, Problem

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
