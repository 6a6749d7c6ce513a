"""Tests on lab hosts: real libvirt, real kernel, real packets."""
