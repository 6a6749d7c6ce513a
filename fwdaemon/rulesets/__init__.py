"""Rules of other programs as plain data, read from nft's listings and iptables' (`nft_*`, `xt_*`). Pure.

`packet` and `evaluation` follow one packet, for `fwdaemon.explain`. `rules` follows whole sets, so that a statement
about all packets can be made, for `fwdaemon.importing`: which of those that a forward would take did these rules let
in, and to where. `nat_chains` says where they send connections, for `fwdaemon.conflicts`.
"""
