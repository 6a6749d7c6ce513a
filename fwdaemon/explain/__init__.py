"""Follows one connection through the host, and says where it stops and why.

What the kernel and libvirt hold comes through one seam (`report.World`, made by `gather`); all else is pure: which
entry claims the connection (`arrival`), who refuses its first packet on the way in (`entrance`) and to the guest
(`delivery`), by the rules as `fwdaemon.rulesets` reads and follows them, and what to do about it (`remedies`).
"""
