"""The long run: very many lifecycle events and wipes pressed into an hour, and what that leaves behind in the daemon.

`sudo scripts/robustness` runs it at full length, `tests/host/test_endurance.py` for a moment. Memory, descriptors,
threads and children are measured at rest, before and after, in the same way; so is how fast a wipe is healed.
"""
