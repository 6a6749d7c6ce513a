"""The sockets of this host's own processes: which ones wait for connections or datagrams, and whose they are."""
