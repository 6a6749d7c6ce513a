#!/usr/bin/python
# Copyright: kvm-portfwd maintainers
# Apache License 2.0 (see https://www.apache.org/licenses/LICENSE-2.0)
"""Keeps one [[nat]] of kvm-portfwd."""

from __future__ import annotations

DOCUMENTATION = r"""
module: nat
short_description: Map a public address one-to-one to a libvirt guest
description:
  - Keeps a C([[nat]]) of kvm-portfwd, one public address that is a guest, for every protocol and port, in and out.
  - Each entry is a drop-in of its own. It is checked together with the rest of the configuration before it is written.
extends_documentation_fragment: [kvm_portfwd.host.entry, kvm_portfwd.host.entry.access, kvm_portfwd.host.entry.guest]
options:
  public:
    description: The public address. Needed unless I(state=absent).
    type: str
  assign:
    description: Interface of the host that holds the address while the guest runs. Left out, none.
    type: str
"""

EXAMPLES = r"""
- name: The mail server has an address of its own
  kvm_portfwd.host.nat:
    name: mail
    domain: mail
    public: 198.51.100.8
    assign: eth0
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
    "public": {"type": "str"},
    "sources": LIST,
    "deny": LIST,
    "assign": {"type": "str"},
    "address": {"type": "str"},
    "network": {"type": "str"},
    "mac": {"type": "str"},
}


def main():
    module = AnsibleModule(
        argument_spec={**COMMON_OPTIONS, **OPTIONS},
        required_if=[("state", "present", ("domain", "public"))],
        mutually_exclusive=[("network", "mac")],
        supports_check_mode=True,
    )
    Entry(module, "nat", OPTIONS).ensure()


if __name__ == "__main__":
    main()
