"""Random packets through both rule systems, beside what the configuration promises and what `explain` foretells."""
