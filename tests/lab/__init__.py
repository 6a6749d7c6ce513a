"""The lab: real virtualization hosts in namespaces of one machine, for tests and for the demonstration.

README.md beside this file says how it is put together and how to look inside.
"""
