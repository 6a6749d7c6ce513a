"""Rules of other programs as plain data, and what becomes of sets of packets in them. Pure; knows no rule language.

`fwdaemon.explain` follows one packet. Here whole sets are followed, so that a statement about all packets can be made:
which of those that a forward would take did these rules let in, and to where.
"""
