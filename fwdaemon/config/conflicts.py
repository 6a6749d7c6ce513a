"""Entries that claim the same, as problems: how many of them are told."""

from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from typing import Final

from fwdaemon.errors import Problem

MOST_CONFLICTS: Final = 100


def cut_short(conflicts: Iterable[Problem]) -> list[Problem]:
    """Return the first `MOST_CONFLICTS` problems; where there are more, one that says so is added."""
    problems = list(islice(conflicts, MOST_CONFLICTS + 1))
    if len(problems) > MOST_CONFLICTS:
        text = f"there are more than {MOST_CONFLICTS} conflicts; mend those listed, and the others will be shown"
        problems[-1] = replace(problems[-2], text=text)
    return problems
