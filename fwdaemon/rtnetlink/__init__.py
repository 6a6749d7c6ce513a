"""The kernel's routes, addresses, neighbours, proxy entries and bridge ports over rtnetlink(7).

`client` asks; `route`, `address`, `neighbour`, `proxy` and `link` know one table each. pyroute2 is not used: of the
releases we support, 0.7 cannot name the protocol of a proxy entry, and 0.9 cannot list proxy entries at all; and what
is asked at every look is to cost little.
"""
