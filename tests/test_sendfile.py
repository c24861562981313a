"""`loop.sendfile` and `loop.sock_sendfile` (need 7): by the kernel where it can, in order with what was written."""

from __future__ import annotations

import asyncio
import io
import os
import socket
import ssl
from asyncio import constants
from collections.abc import Iterator
from pathlib import Path
from typing import IO
from unittest import mock

import pytest
from support import RawPeer, Recorder, in_time, pair, raw_connection, tcp_socketpair, turns

pytestmark = pytest.mark.debug_variant

CONTENT = bytes(i % 249 for i in range(1_500_000))


@pytest.fixture
def file(tmp_path: Path) -> Iterator[IO[bytes]]:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    with path.open("rb") as opened:
        yield opened


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_need_7_whole_file(file: IO[bytes], kind: str) -> None:
    loop = asyncio.get_running_loop()
    async with raw_connection(Recorder, kind, small_buffers=True) as (transport, _, peer):
        received = asyncio.create_task(peer.receive_all(len(CONTENT)))
        assert await in_time(loop.sendfile(transport, file)) == len(CONTENT)
        assert await received == CONTENT
        assert file.tell() == len(CONTENT)


async def test_part_of_a_file(file: IO[bytes]) -> None:
    loop = asyncio.get_running_loop()
    async with raw_connection(Recorder) as (transport, _, peer):
        assert await in_time(loop.sendfile(transport, file, 1000, 5000)) == 5000
        assert await peer.receive_all(5000) == CONTENT[1000:6000]
        assert file.tell() == 6000


async def test_behind_the_end_of_the_file(file: IO[bytes]) -> None:
    loop = asyncio.get_running_loop()
    async with raw_connection(Recorder) as (transport, _, peer):
        assert await in_time(loop.sendfile(transport, file, len(CONTENT) + 1000)) == 0
        assert await in_time(loop.sendfile(transport, file, len(CONTENT) - 10, 1000)) == 10
        assert await peer.receive_all(10) == CONTENT[-10:]


async def test_between_writes(file: IO[bytes]) -> None:
    """What was written before goes before, also what is corked; reading goes on meanwhile."""
    loop = asyncio.get_running_loop()
    async with raw_connection(Recorder, small_buffers=True) as (transport, protocol, peer):
        head = b"head" * 100_000
        received = asyncio.create_task(peer.receive_all(len(head) + 6 + len(CONTENT) + 4))
        for part in head, b"a", b"b", b"c":
            transport.write(part)
        transport.writelines([b"d", b"ef"])
        sending = asyncio.create_task(loop.sendfile(transport, file))
        await turns(2)
        peer.sock.sendall(b"meanwhile")
        assert await in_time(sending) == len(CONTENT)
        transport.write(b"tail")
        assert await received == head + b"abcdef" + CONTENT + b"tail"
        assert await protocol.bytes_received(9) == b"meanwhile"


async def test_nothing_may_be_written_meanwhile(file: IO[bytes]) -> None:
    loop = asyncio.get_running_loop()
    async with raw_connection(Recorder, "unix", small_buffers=True) as (transport, _, peer):
        sending = asyncio.create_task(loop.sendfile(transport, file))
        await turns(3)
        with pytest.raises(RuntimeError, match="sendfile is in progress"):
            transport.write(b"x")
        assert await peer.receive_all(len(CONTENT)) == CONTENT
        await in_time(sending)


async def test_fallback_for_what_is_no_real_file() -> None:
    loop = asyncio.get_running_loop()
    async with raw_connection(Recorder) as (transport, _, peer):
        received = asyncio.create_task(peer.receive_all(len(CONTENT)))
        assert await in_time(loop.sendfile(transport, io.BytesIO(CONTENT))) == len(CONTENT)
        assert await received == CONTENT
        with pytest.raises(asyncio.SendfileNotAvailableError):
            await loop.sendfile(transport, io.BytesIO(CONTENT), fallback=False)


async def test_over_tls(file: IO[bytes], server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> None:
    """No kernel encrypts for us: the fallback."""
    loop = asyncio.get_running_loop()
    async with pair(server_tls=server_tls, client_tls=client_tls) as ends:
        assert await in_time(loop.sendfile(ends.client.transport, file)) == len(CONTENT)
        assert await ends.server.bytes_received(len(CONTENT)) == CONTENT
        with pytest.raises(RuntimeError, match="fallback is disabled"):
            await loop.sendfile(ends.client.transport, file, fallback=False)


async def test_on_a_closing_transport(file: IO[bytes]) -> None:
    loop = asyncio.get_running_loop()
    async with raw_connection(Recorder) as (transport, protocol, _):
        transport.close()
        with pytest.raises(RuntimeError, match="Transport is closing"):
            await loop.sendfile(transport, file)
        await in_time(protocol.lost)


async def test_the_peer_goes_meanwhile(file: IO[bytes]) -> None:
    loop = asyncio.get_running_loop()
    async with raw_connection(Recorder, "unix", small_buffers=True) as (transport, _, peer):
        sending = asyncio.create_task(loop.sendfile(transport, file))
        await turns(3)
        peer.sock.close()
        with pytest.raises(ConnectionError):
            await in_time(sending)


async def test_argument_errors(file: IO[bytes], tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    async with raw_connection(Recorder) as (transport, _, _peer):
        with pytest.raises(ValueError, match="binary mode"), (tmp_path / "file").open() as text:
            await loop.sock_sendfile(transport.get_extra_info("socket"), text)  # type: ignore[arg-type]
        other = mock.create_autospec(asyncio.WriteTransport, instance=True)
        other.is_closing.return_value = False
        other._sendfile_compatible = vars(constants)["_SendfileMode"].UNSUPPORTED
        with pytest.raises(RuntimeError, match="sendfile is not supported for transport"):
            await loop.sendfile(other, file)


async def test_sock_sendfile(file: IO[bytes]) -> None:
    loop = asyncio.get_running_loop()
    near, far = tcp_socketpair()
    near.setblocking(False)
    with near, far:
        received = asyncio.create_task(RawPeer(far).receive_all(len(CONTENT) - 3))
        assert await in_time(loop.sock_sendfile(near, file, 3)) == len(CONTENT) - 3
        assert await received == CONTENT[3:]


async def test_reading_goes_on_afterwards(file: IO[bytes]) -> None:
    loop = asyncio.get_running_loop()
    async with raw_connection(Recorder) as (transport, protocol, peer):
        received = asyncio.create_task(peer.receive_all(len(CONTENT)))
        await in_time(loop.sendfile(transport, file))
        await received
        peer.sock.sendall(b"still here")
        assert await protocol.bytes_received(10) == b"still here"
        peer.sock.shutdown(socket.SHUT_WR)
        assert await in_time(protocol.lost) is None
        assert os.fstat(file.fileno())
