"""`kvm-portfwd rules`: print the rules that would be written now, without writing them."""

import argparse

from fwdaemon import config as configuration
from fwdaemon.commands.plan import desired_now
from fwdaemon.kernel.process import SystemRunner
from fwdaemon.netfilter import Netfilter
from fwdaemon.status.temporary import with_temporary


def run(options: argparse.Namespace) -> int:
    """Print the native text; nothing where no forward would be live."""
    config = with_temporary(configuration.load(options.config))
    text = Netfilter(SystemRunner(), config.daemon.backend).render(desired_now(config))
    print(text, end="\n" if text else "")
    return 0
