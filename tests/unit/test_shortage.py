"""A loop whose program has no descriptor left."""

import asyncio
import logging
import os
import resource
import socket
from pathlib import Path

import pytest

from fwdaemon.kernel.memory import ShortageHandler


def test_where_no_descriptor_is_left_that_is_told_once_and_clients_are_served_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello\n")
        writer.close()

    async def serve() -> bytes:
        loop, path = asyncio.get_running_loop(), str(tmp_path / "socket")
        loop.set_exception_handler(ShortageHandler())
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        async with await asyncio.start_unix_server(greet, path):
            client = socket.socket(socket.AF_UNIX)
            client.settimeout(0)
            most = max(map(int, os.listdir("/proc/self/fd")))  # noqa: PTH208  one name after the other
            spare = [os.dup(0) for _ in range(most)]  # no gap is left below
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(spare) + 1, hard))
            client.connect(path)
            try:
                async with asyncio.timeout(10):
                    while not caplog.records:  # noqa: ASYNC110  there is no event
                        await asyncio.sleep(0.01)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                for file in spare:
                    os.close(file)
            said = await loop.sock_recv(client, 100)
            client.close()
            return said

    with caplog.at_level(logging.ERROR):
        assert asyncio.run(serve()) == b"hello\n"
    assert [record.message for record in caplog.records] == [
        "no client is accepted until there is room again: Too many open files"
    ]
