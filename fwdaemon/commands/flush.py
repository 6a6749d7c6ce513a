"""`kvm-portfwd flush`: take away every rule, route and address that is ours, and put back what we switched."""

import argparse
import sys

from fwdaemon.hostside import HostSide
from fwdaemon.netfilter import Netfilter
from fwdaemon.outcome import joined
from fwdaemon.process import SystemRunner


def run(options: argparse.Namespace) -> int:
    """Remove; no configuration is needed, since whatever carries our name is ours. 1 if anything may be left."""
    del options
    # The host's side goes first: without the rules, an address or setting of ours could lead to the host itself.
    outcome = joined(HostSide().remove(), Netfilter(SystemRunner()).remove())
    for fault in outcome.faults:
        print(f"kvm-portfwd: {fault}", file=sys.stderr)
    return int(bool(outcome.faults))
