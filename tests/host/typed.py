"""Commands that a page or manual prints, typed on a host; `ssh` says who answers where it would have gone."""

from typing import Final

from tests.lab.host import Host

_DIRECTORY: Final = "/run/example"
# In place of ssh: says who answers at the port of the machine that is named last.
_SSH: Final = """#!/usr/bin/python3
import socket, sys
option, port, machine = sys.argv[1:]
print(socket.create_connection((machine.partition("@")[2], int(port)), 5).makefile().readline())
"""


def typed(host: Host, text: str) -> str:
    """Give what a shell of root prints; virsh there means containers."""
    programs = {"ssh": _SSH, "kvm-portfwd": f'#!/bin/sh\nexec {host.python} -m fwdaemon "$@"\n'}
    for name, program in programs.items():
        host.run("install", "-D", "-m", "755", "/dev/stdin", f"{_DIRECTORY}/{name}", stdin=program)
    setting = f"PATH={_DIRECTORY}:$PATH VIRSH_DEFAULT_CONNECT_URI=lxc:///system; export VIRSH_DEFAULT_CONNECT_URI"
    return host.run("sh", "-e", "-c", f"{setting}\n{text}").stdout
