"""Turns what older tools keep into entries of our configuration: readers for each kind of file, and the writer.

Pure: `fwdaemon.commands.import_` reads the files, asks libvirt and prints. What is read may hold anything; whatever is
not understood becomes a warning, never a guess. Nothing here is loaded by the daemon.
"""
