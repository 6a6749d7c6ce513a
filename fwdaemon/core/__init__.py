"""Plain data that every other package uses. Pure."""
