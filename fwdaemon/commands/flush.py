"""`kvm-portfwd flush`: take away every rule that is ours, in every family, and put bridge ports back."""

import argparse

from fwdaemon.hairpin import HairpinPorts
from fwdaemon.netfilter import choose_backend
from fwdaemon.process import SystemRunner


def run(options: argparse.Namespace) -> int:
    """Remove; no configuration is needed, since whatever carries our name is ours."""
    del options
    choose_backend(SystemRunner()).remove()
    HairpinPorts().keep(())
    return 0
