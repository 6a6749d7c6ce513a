# Copyright: kvm-portfwd maintainers
# Apache License 2.0 (see https://www.apache.org/licenses/LICENSE-2.0)
"""The options that all modules for entries have."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  name:
    description: Names the drop-in file, C(ansible-KIND-NAME.toml). Letters, digits, C(.), C(_) and C(-).
    type: str
    required: true
  state:
    description: Whether the entry is to be there.
    type: str
    choices: [present, absent]
    default: present
  reload:
    description: Have the daemon reload its configuration after a change, if it runs.
    type: bool
    default: true
  config:
    description: The main file. Drop-ins are in the directory beside it that ends in C(.d) instead.
    type: path
    default: /etc/portfwd.toml
  program:
    description: The command of kvm-portfwd.
    type: path
    default: kvm-portfwd
requirements: [kvm-portfwd >= 0.2 on the host, root]
author: [kvm-portfwd maintainers (@kvm-portfwd)]
"""

    ACCESS = r"""
options:
  sources:
    description: Networks, and sets as C(set:NAME), from which clients may connect. Left out, anyone may.
    type: list
    elements: str
  deny:
    description: Networks, and sets as C(set:NAME), from which clients may not connect.
    type: list
    elements: str
"""

    GUEST = r"""
options:
  domain:
    description: The guest, by its libvirt name or UUID. Needed unless I(state=absent).
    type: str
  address:
    description: The guest's address. Left out, libvirt is asked.
    type: str
  network:
    description: Which of the guest's interfaces, by its libvirt network.
    type: str
  mac:
    description: Which of the guest's interfaces, by its MAC address.
    type: str
"""
