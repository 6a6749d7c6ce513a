"""The control socket: who asks how things are, or wants the configuration read again, speaks Varlink with the daemon.

Varlink (https://varlink.org/Method-Call) is JSON objects with a NUL byte after each, on a stream socket; systemd's
`varlinkctl` speaks it too. The `varlink` package on PyPI has no asyncio and a thread for each client, and the
distributions do not ship it, so the little that is needed is here:

- `protocol`: messages, to and from bytes. `kvm.portfwd.Manager.varlink` describes what can be called.
- `listener`: the socket in the file system, and the lock that tells whether a daemon runs; `sole` tells it
  without a file. `peer`: who is calling.
- `server`: clients, each within bounds that keep it from being anybody else's business.
- `manager`: the methods. `feed`: what those hear who watch.
- `client`: the other end, for the commands.
"""
