"""Configuration: from TOML files to a checked `Config`.

`load` reads files; `parse` does the same with texts. Both raise `ConfigError` with all that is wrong, in the order of
file and line, and each problem names its remedy.
"""

from fwdaemon.config.loader import load, parse

__all__ = ["load", "parse"]
