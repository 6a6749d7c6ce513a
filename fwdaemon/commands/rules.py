"""`kvm-portfwd rules`: print the rules that would be written now, touching nothing."""

import argparse
import asyncio

from fwdaemon import config as configuration
from fwdaemon.events import take_inventory
from fwdaemon.netfilter import Netfilter
from fwdaemon.placing import desired_state
from fwdaemon.process import SystemRunner


def run(options: argparse.Namespace) -> int:
    """Ask libvirt what runs, and print the native text; nothing where no forward would be live."""
    config = configuration.load(options.config)
    inventory = asyncio.run(take_inventory(config.daemon.libvirt))
    text = Netfilter(SystemRunner(), config.daemon.backend).render(desired_state(config, inventory))
    print(text, end="\n" if text else "")
    return 0
