"""Warnings about what is tried again and again."""

import logging

_log = logging.getLogger(__name__)


class WarnOnce:
    """Says what is wrong when it is new, and not again until it was well in between."""

    def __init__(self) -> None:
        self._said = ""

    def warn(self, text: str) -> None:
        """Say what is wrong."""
        if text != self._said:
            _log.warning("%s", text)
            self._said = text

    def settle(self) -> None:
        """Note that it is well."""
        self._said = ""
