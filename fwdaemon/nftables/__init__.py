"""Backend `nftables`: our rules in tables `ip kvm_portfwd` and `ip6 kvm_portfwd`.

`ruleset` says what the tables are to hold, and `dispatch_chains` what of it each exposure has. `model` says what they
do hold, `difference` makes one script of the two, and `backend` is the only module here that touches the kernel. Be
aware:

- A NAT chain sees a connection's first packet only. All matching is done there; the connection label carries the
  decision to every later packet, and to the gates (`fwdaemon.nftables.gates`).
- `nft` does not print a rule the way it was written, so a rule is known by the digest in its comment, never by its
  body.
- Priorities are numbers: nft 1.0.6 refuses `dstnat - 5` in an output chain.
"""
