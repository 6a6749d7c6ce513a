"""What exposures need of the host besides rules: routes, addresses, proxies and settings."""
