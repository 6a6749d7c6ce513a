"""What else on this host has to do with the ports that exposures take: its own processes, and rules of other tools.

None of it is an error, as people do it on purpose; but no one should find out by losing their way into the host.
"""
