"""A host on which everything goes wrong, in an order drawn by lot; after each fault the whole truth is compared.

`sudo scripts/chaos` runs it for long, `tests/host/test_chaos.py` for a moment. What shall be true is worked out from a
small model in here, and never by asking the code under test.
"""
