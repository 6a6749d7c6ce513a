"""The behaviour of every backend, shown by nftables and by the legacy tables on the real kernel."""

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import product
from pathlib import Path

import pytest

from fwdaemon.core.types import Family
from fwdaemon.kernel.process import SystemRunner
from fwdaemon.legacy.backend import LegacyBackend
from fwdaemon.netfilter import Backend
from fwdaemon.nftables.backend import NftablesBackend
from tests.kernel.legacy import iptables, own, own_ipsets
from tests.lab.command import run
from tests.unit.backend_behaviour import BackendBehaviour, Scene


class TestNftables(BackendBehaviour):
    @pytest.fixture
    def scene(self, runner: SystemRunner) -> Scene:
        return Scene(lambda: NftablesBackend(runner), _wipe, _ours)


def _wipe() -> None:
    run(["nft", "flush", "ruleset"])


def _ours() -> object:
    tables = run(["nft", "list", "tables"]).stdout.splitlines()
    ours = [line.split()[1:] for line in tables if "kvm_portfwd" in line]
    # What is refused for a while ends by itself.
    return [run(["nft", "-s", "list", "table", *table]).stdout for table in ours]


class TestLegacy(BackendBehaviour):
    @pytest.fixture
    def scene(self, lock_file: Path) -> Iterator[Scene]:
        del lock_file
        with ExitStack() as stack:

            def another() -> Backend:
                backend = LegacyBackend()
                stack.callback(backend.close)
                return backend

            yield Scene(another, _wipe_legacy, lambda: (own(), own_ipsets()))


def _wipe_legacy() -> None:
    for family, table, action in product(Family, ("filter", "mangle", "nat"), ("-F", "-X")):
        iptables("-t", table, action, family=family)
    run(["ipset", "destroy"])
