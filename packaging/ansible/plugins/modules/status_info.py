#!/usr/bin/python
# Copyright: kvm-portfwd maintainers
# Apache License 2.0 (see https://www.apache.org/licenses/LICENSE-2.0)
"""Returns the status of kvm-portfwd."""

from __future__ import annotations

DOCUMENTATION = r"""
module: status_info
short_description: What kvm-portfwd keeps open, and what waits and why
description:
  - Returns what C(kvm-portfwd status --json) prints. It changes nothing.
options:
  program:
    description: The command of kvm-portfwd.
    type: path
    default: kvm-portfwd
requirements: [kvm-portfwd >= 0.2 on the host, root or a member of its group]
author: [kvm-portfwd maintainers (@kvm-portfwd)]
"""

EXAMPLES = r"""
- kvm_portfwd.host.status_info:
  register: portfwd
- ansible.builtin.assert:
    that: portfwd.status.counts.refused == 0
"""

RETURN = r"""
running:
  description: Whether a daemon runs.
  type: bool
  returned: always
status:
  description: Its status, as kvm-portfwd(8) describes it.
  type: dict
  returned: if a daemon runs
"""

import json

from ansible.module_utils.basic import AnsibleModule


def main():
    module = AnsibleModule(
        argument_spec={"program": {"type": "path", "default": "kvm-portfwd"}}, supports_check_mode=True
    )
    code, out, err = module.run_command([module.params["program"], "status", "--json"])
    try:
        status = json.loads(out)
    except ValueError:
        module.fail_json(msg=f"kvm-portfwd status failed with {code}:\n{out}{err}")
    module.exit_json(changed=False, running=code == 0, status=status)


if __name__ == "__main__":
    main()
