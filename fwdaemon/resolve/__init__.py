"""From the configuration and an inventory to the desired state. Pure."""
