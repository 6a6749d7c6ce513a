"""`kvm-portfwd flush`: take away every rule that is ours, in every family, and put bridge ports back."""

import argparse
import sys

from fwdaemon.hairpin import HairpinPorts
from fwdaemon.netfilter import Netfilter
from fwdaemon.process import SystemRunner


def run(options: argparse.Namespace) -> int:
    """Remove; no configuration is needed, since whatever carries our name is ours."""
    del options
    for fault in Netfilter(SystemRunner()).remove().faults:
        print(f"kvm-portfwd: {fault}", file=sys.stderr)
    HairpinPorts().keep(())
    return 0
