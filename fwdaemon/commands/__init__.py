"""One module for each command of the command line, with a function `run` that gives the exit code.

They are imported when they run, so that each pays for its own libraries only.
"""
