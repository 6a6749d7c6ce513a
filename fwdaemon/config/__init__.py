"""Configuration: from TOML files to a checked `Config`."""
