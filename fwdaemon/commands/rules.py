"""`kvm-portfwd rules`: print the rules that would be written now, without writing them."""

import argparse
import asyncio

from fwdaemon import config as configuration
from fwdaemon.events import take_inventory
from fwdaemon.kernel.listeners import ports_in_use
from fwdaemon.kernel.process import SystemRunner
from fwdaemon.netfilter import Netfilter
from fwdaemon.resolve.placement import desired_state
from fwdaemon.status.reloads import PortRecords


def run(options: argparse.Namespace) -> int:
    """Ask libvirt what runs, and print the native text; nothing where no forward would be live."""
    config = configuration.load(options.config)
    inventory = asyncio.run(take_inventory(config.daemon.libvirt))
    desired = desired_state(config, inventory, before=PortRecords().before(ports_in_use))
    text = Netfilter(SystemRunner(), config.daemon.backend).render(desired)
    print(text, end="\n" if text else "")
    return 0
