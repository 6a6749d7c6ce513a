"""`kvm-portfwd check`: say whether the configuration is right, and everything that is wrong if not."""

import argparse

from fwdaemon import config as configuration


def run(options: argparse.Namespace) -> int:
    """Read the configuration as the daemon would; whatever is wrong leaves as a `ConfigError`."""
    path = options.file or options.config
    config = configuration.load(path)
    forwards = sum(len(entry.mappings) for entry in config.forwards)
    print(f"{path}: fine; {len(config.forwards)} entries, {forwards} forwards")
    return 0
