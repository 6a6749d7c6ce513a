"""The control socket, on which clients ask the daemon for its status or for a reload, in Varlink.

Varlink (https://varlink.org/Method-Call) is JSON objects with a NUL byte after each, on a stream socket; systemd's
`varlinkctl` speaks it too. The `varlink` package on PyPI has no asyncio and a thread for each client, and the
distributions do not ship it, so the little that is needed is here:

- `protocol`: messages, to and from bytes, and the other end, for the commands. What can be called is described in
  `kvm.portfwd.Manager.varlink`.
- `listener`: the socket in the file system with the credentials of its peers, and what shows whether a daemon runs.
- `server`: clients, each within limits that keep it from affecting others.
- `manager`: the methods, and the feed for clients that watch; `questions`: those that look at the whole host.
"""
