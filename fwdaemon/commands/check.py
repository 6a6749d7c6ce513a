"""`kvm-portfwd check`: say whether the configuration is right, and everything that is wrong if not."""

import argparse
import sys
from ipaddress import IPv4Network
from typing import Final

from fwdaemon import config as configuration
from fwdaemon.clashes.watch import clashes_if_running
from fwdaemon.config.contradictions import families_of_entry
from fwdaemon.config.model import Config, ForwardEntry
from fwdaemon.metrics.requirement import satisfied
from fwdaemon.model import Family
from fwdaemon.process import SystemRunner

_LOOPBACK: Final = IPv4Network("127.0.0.0/8")


def run(options: argparse.Namespace) -> int:
    """Read the configuration as the daemon would; whatever is wrong leaves as a `ConfigError`."""
    path = options.file or options.config
    config = satisfied(configuration.load(path))
    print(f"{path}: fine; {_count(config)}")
    if config.daemon.localhost:
        print(_explain_localhost(config))
    _warn(config)
    return 0


def _warn(config: Config) -> None:
    """Tell what on this host clashes with it; people do that on purpose, so it is no reason to refuse."""
    clashes, missing = clashes_if_running(config, SystemRunner())
    for clash in clashes:
        print(f"warning: {clash}", file=sys.stderr)
    if missing:
        print(f"hint: {missing}", file=sys.stderr)


def _count(config: Config) -> str:
    """Say what there is; a port string for two protocols is two forwards."""
    forwards = sum(len(entry.mappings) for entry in config.forwards)
    counted = (
        (forwards, "forward", "forwards"),
        (len(config.nats), "address 1:1", "addresses 1:1"),
        (len(config.routes), "route", "routes"),
    )
    found = [f"{number} {one if number == 1 else many}" for number, one, many in counted if number]
    return ", ".join(found) or "nothing is forwarded yet"


def _explain_localhost(config: Config) -> str:
    """Say what `localhost = true` comes to, since it is less than its name promises."""
    if any(map(_answers_on_localhost, config.forwards)):
        return (
            "localhost = true: forwards that listen on every address answer on 127.0.0.1 of this host too,"
            " but not on ::1, since the kernel has no way to do that by DNAT"
        )
    return (
        "localhost = true, but nothing answers on 127.0.0.1: no IPv4 forward is there for every address, every"
        " interface and 127.0.0.1 as a source; on ::1 none could answer, since the kernel has no way to do that by DNAT"
    )


def _answers_on_localhost(entry: ForwardEntry) -> bool:
    """Whether an entry has a forward that takes what the host sends to 127.0.0.1, from there."""
    listens_everywhere = not entry.listen and any(mapping.listen is None for mapping in entry.mappings)
    admits = not entry.sources or any(source.overlaps(_LOOPBACK) for source in entry.sources)
    is_ipv4 = Family.IPV4 in families_of_entry(entry)
    return is_ipv4 and entry.interface is None and listens_everywhere and admits
