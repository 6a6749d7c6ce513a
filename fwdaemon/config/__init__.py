"""Configuration: from TOML files to a checked `Config`.

`load` reads files, `load_guarded` those that only root can change; `parse` does the same with texts. All three raise
`ConfigError` with all that is wrong, in the order of file and line, and each problem names its remedy.
"""

from fwdaemon.config.loader import Loaded, load, load_guarded, parse

__all__ = ["Loaded", "load", "load_guarded", "parse"]
