"""The edge to the system: netlink, conntrack, sockets, sysctls, programs and threads."""
