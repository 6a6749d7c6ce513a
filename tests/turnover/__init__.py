"""Transient domains that come and go all the time, and ask for automatic ports in their own definitions."""
