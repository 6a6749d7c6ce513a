"""Programs of the machine that a test asks about what we ship for them: mandoc, shells, journalctl."""

import os
import shutil

import pytest


def find(name: str) -> str:
    """Give a program's path; without it, skip on a developer's machine, and fail where everything has to run."""
    path = shutil.which(name)
    if path is None:
        reason = f"{name} is not installed; scripts/test installs it"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return path
