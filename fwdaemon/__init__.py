"""kvm-portfwd: keeps ports of a host forwarded to its libvirt guests.

The flow, in one line: configuration and inventory make the desired state, the desired state makes a ruleset, and the
difference between that ruleset and what the kernel holds is committed. ARCHITECTURE.md shows the rooms.
"""

__version__ = "0.2.0"
