"""Backend `iptables`: our rules in chains of our own in iptables-legacy, made with python-iptables.

`ruleset`, with `translation` for the nat table, says what the tables are to hold, a `helper` says what they do hold,
`difference` makes the edits of the two, and `backend` has the helper commit them. Be aware:

- python-iptables takes no lock, redirects standard output, can do DNAT for one family only, and leaves the process in
  an unknown state when the library refuses a rule. So only `library` imports it, and only a helper process, one per
  family, imports `library`. The daemon never does.
- A helper holds iptables' own lock from the first read to the last commit. What others do in between is theirs to lose.
- Asking the kernel about a legacy table brings the table into being, so `info` looks first whether it is there.
- A rule is known by the digest in its comment, never by its body; a link, which has no digest, is compared whole.
"""
