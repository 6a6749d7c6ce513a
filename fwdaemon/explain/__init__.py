"""Follows one connection through the host, and says where it stops and why.

What the kernel and libvirt hold comes through one seam (`report.World`, made by `gather`); all else is pure: which
entry claims the connection (`claims`), how rules of nftables (`nft_*`) and iptables (`xt_*`) treat its first packet
(`evaluation`), and what to do about it (`remedies`).
"""
