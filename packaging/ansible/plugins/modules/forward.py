#!/usr/bin/python
# Copyright: kvm-portfwd maintainers
# Apache License 2.0 (see https://www.apache.org/licenses/LICENSE-2.0)
"""Keeps one [[forward]] of kvm-portfwd."""

from __future__ import annotations

DOCUMENTATION = r"""
module: forward
short_description: Forward ports of a libvirt host to a guest
description:
  - Keeps a C([[forward]]) of kvm-portfwd, ports of the host that lead to a guest while it runs.
  - Each entry is a drop-in of its own. It is checked together with the rest of the configuration before it is written.
extends_documentation_fragment: [kvm_portfwd.host.entry, kvm_portfwd.host.entry.access, kvm_portfwd.host.entry.guest]
options:
  ports:
    description:
      - C([ADDRESS:]HOST[-HOST][:GUEST[-GUEST]][/tcp|udp|sctp|tcp+udp]) each, or C(auto:GUEST).
      - Needed unless I(state=absent).
    type: list
    elements: str
  listen:
    description: Addresses of the host. Left out, every local address.
    type: list
    elements: str
  interface:
    description: Only packets that came in on this interface of the host.
    type: str
  rate:
    description: How many new connections one source address may open, such as C(30/minute).
    type: str
  max_open:
    description: How many connections one source address may have open.
    type: int
  masquerade:
    description: The guest sees an address of the host instead of the client's.
    type: bool
  log:
    description: Write a line to the journal when a connection begins, and one when it ends.
    type: bool
  log_anonymize:
    description: How much of clients' addresses these lines have, such as C(/24). Takes I(log).
    type: str
"""

EXAMPLES = r"""
- name: The shop's web server
  kvm_portfwd.host.forward:
    name: shop
    domain: web1
    ports: ["80", "443", "2222:22"]
    deny: ["set:banned"]
"""

RETURN = r"""
path:
  description: The drop-in.
  type: str
  returned: always
reloaded:
  description: Whether the daemon has reloaded its configuration.
  type: bool
  returned: always
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kvm_portfwd.host.plugins.module_utils.entry import COMMON_OPTIONS, Entry

LIST = {"type": "list", "elements": "str"}
OPTIONS = {
    "domain": {"type": "str"},
    "ports": LIST,
    "listen": LIST,
    "interface": {"type": "str"},
    "sources": LIST,
    "deny": LIST,
    "rate": {"type": "str"},
    "max_open": {"type": "int"},
    "address": {"type": "str"},
    "network": {"type": "str"},
    "mac": {"type": "str"},
    "masquerade": {"type": "bool"},
    "log": {"type": "bool"},
    "log_anonymize": {"type": "str"},
}


def main():
    module = AnsibleModule(
        argument_spec={**COMMON_OPTIONS, **OPTIONS},
        required_if=[("state", "present", ("domain", "ports"))],
        mutually_exclusive=[("network", "mac")],
        supports_check_mode=True,
    )
    Entry(module, "forward", OPTIONS).ensure()


if __name__ == "__main__":
    main()
