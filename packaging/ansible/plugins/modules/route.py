#!/usr/bin/python
# Copyright: kvm-portfwd maintainers
# Apache License 2.0 (see https://www.apache.org/licenses/LICENSE-2.0)
"""Keeps one [[route]] of kvm-portfwd."""

from __future__ import annotations

DOCUMENTATION = r"""
module: route
short_description: Route public addresses to a libvirt network
description:
  - Keeps a C([[route]]) of kvm-portfwd, public addresses that are routed to a libvirt network.
  - Each entry is a drop-in of its own. It is checked together with the rest of the configuration before it is written.
extends_documentation_fragment: [kvm_portfwd.host.entry, kvm_portfwd.host.entry.access]
options:
  network:
    description: The libvirt network. Needed unless I(state=absent).
    type: str
  addresses:
    description: Subnets or single addresses. Needed unless I(state=absent).
    type: list
    elements: str
  proxy:
    description: Interface on which the host answers ARP or neighbour discovery for them. Left out, none.
    type: str
"""

EXAMPLES = r"""
- name: A network with public addresses
  kvm_portfwd.host.route:
    name: public
    network: public
    addresses: ["203.0.113.64/29", "2001:db8:1::/64"]
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
    "network": {"type": "str"},
    "addresses": LIST,
    "sources": LIST,
    "deny": LIST,
    "proxy": {"type": "str"},
}


def main():
    module = AnsibleModule(
        argument_spec={**COMMON_OPTIONS, **OPTIONS},
        required_if=[("state", "present", ("network", "addresses"))],
        supports_check_mode=True,
    )
    Entry(module, "route", OPTIONS).ensure()


if __name__ == "__main__":
    main()
