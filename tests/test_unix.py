"""Unix-domain sockets: servers, clients, paths of every kind."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import Echo, Recorder, in_time, pair, raw_connection, turns

pytestmark = [
    pytest.mark.debug_variant,
    pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="this platform has no Unix-domain sockets"),
]


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    # A socket's path has about a hundred bytes; pytest's folders are long.
    name = f"/tmp/velociloop-test-{os.getpid()}"
    yield name
    Path(name).unlink(missing_ok=True)


async def test_echo() -> None:
    async with pair(Recorder, Echo, unix=True) as ends:
        ends.client.transport.write(b"over a path")
        assert await ends.client.bytes_received(11) == b"over a path"
        ends.client.transport.close()
        assert await in_time(ends.server.lost) is None


async def test_extra_info(path: str) -> None:
    loop = asyncio.get_running_loop()
    accepted: asyncio.Future[Recorder] = loop.create_future()

    def accept() -> Recorder:
        protocol = Recorder()
        accepted.set_result(protocol)
        return protocol

    async with await loop.create_unix_server(accept, path):
        transport, protocol = await loop.create_unix_connection(Recorder, path)
        far = await in_time(accepted)
        await in_time(far.made)
        assert transport.get_extra_info("peername") == path
        assert transport.get_extra_info("sockname") == ""
        assert far.transport.get_extra_info("sockname") == path
        assert far.transport.get_extra_info("peername") == ""
        assert transport.get_extra_info("socket").family == socket.AF_UNIX
        transport.close()
        await in_time(protocol.lost)
        await in_time(far.lost)
        await turns()
        assert transport.get_extra_info("peername") == path
        assert far.transport.get_extra_info("sockname") == path


async def test_socketpairs_addresses_are_empty() -> None:
    async with raw_connection(Recorder, "unix") as (transport, _, _peer):
        assert transport.get_extra_info("sockname") == ""
        assert transport.get_extra_info("peername") == ""


@pytest.mark.skipif(sys.platform != "linux", reason="abstract addresses are Linux's")
async def test_abstract_address() -> None:
    loop = asyncio.get_running_loop()
    name = f"\0velociloop-test-{os.getpid()}"
    async with await loop.create_unix_server(Echo, name):
        transport, protocol = await loop.create_unix_connection(Recorder, name)
        assert transport.get_extra_info("peername") == name.encode()
        transport.write(b"abstract")
        assert await protocol.bytes_received(8) == b"abstract"
        transport.close()
        await in_time(protocol.lost)
        await turns(6)


async def test_path_objects_and_bytes(path: str) -> None:
    loop: Any = asyncio.get_running_loop()
    for kind in Path(path), os.fsencode(path):
        async with await loop.create_unix_server(Echo, kind):
            transport, protocol = await loop.create_unix_connection(Recorder, kind)
            transport.close()
            await in_time(protocol.lost)
            await turns(6)
        Path(path).unlink(missing_ok=True)


async def test_a_stale_socket_is_replaced_and_another_file_is_not(path: str) -> None:
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(path)
    async with await loop.create_unix_server(Recorder, path):
        pass
    Path(path).unlink(missing_ok=True)
    Path(path).write_text("a file")
    with pytest.raises(OSError, match="already in use"):
        await loop.create_unix_server(Recorder, path)


@pytest.mark.skipif(sys.version_info < (3, 13), reason="cleanup_socket came with Python 3.13")
@pytest.mark.parametrize("cleanup", [True, False])
async def test_cleanup_socket(path: str, cleanup: bool) -> None:
    loop: Any = asyncio.get_running_loop()
    server = await loop.create_unix_server(Recorder, path, cleanup_socket=cleanup)
    assert os.path.exists(path)
    server.close()
    await turns()
    assert os.path.exists(path) is not cleanup


async def test_given_socket(path: str) -> None:
    loop = asyncio.get_running_loop()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    async with await loop.create_unix_server(Echo, sock=listener):
        sock = socket.socket(socket.AF_UNIX)
        sock.setblocking(False)
        sock.connect(path)
        transport, protocol = await loop.create_unix_connection(Recorder, sock=sock)
        transport.write(b"given")
        assert await protocol.bytes_received(5) == b"given"
        transport.close()
        await in_time(protocol.lost)
        await turns(6)
        assert sock.fileno() == -1


async def test_argument_errors(path: str) -> None:
    loop = asyncio.get_running_loop()
    with pytest.raises(ValueError, match="no path and sock were specified"):
        await loop.create_unix_connection(Recorder)
    with pytest.raises(ValueError, match="path was not specified, and no sock specified"):
        await loop.create_unix_server(Recorder)
    with pytest.raises(ValueError, match="server_hostname is only meaningful with ssl"):
        await loop.create_unix_connection(Recorder, path, server_hostname="name")
    with socket.socket() as sock, pytest.raises(ValueError, match="A UNIX Domain Stream Socket was expected"):
        await loop.create_unix_connection(Recorder, sock=sock)


async def test_streams(path: str) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read(100))
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_unix_server(handle, path):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"through streams")
        assert await in_time(reader.read()) == b"through streams"
        writer.close()
        await writer.wait_closed()


async def test_tls(server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> None:
    async with pair(Recorder, Echo, unix=True, server_tls=server_tls, client_tls=client_tls) as ends:
        ends.client.transport.write(b"secret")
        assert await ends.client.bytes_received(6) == b"secret"
        assert ends.client.transport.get_extra_info("cipher")
        ends.client.transport.close()
        assert await in_time(ends.server.lost) is None


async def test_descriptors_in_flight_survive() -> None:
    """A program that receives descriptors itself does so on the socket of a paused transport."""
    async with raw_connection(Recorder, "unix") as (transport, _, peer):
        transport.pause_reading()
        await turns()
        reading, writing = os.pipe()
        socket.send_fds(peer.sock, [b"x"], [writing])
        os.close(writing)
        near = socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))
        with near:
            data, descriptors, _, _ = socket.recv_fds(near, 10, 1)
        assert data == b"x"
        os.write(descriptors[0], b"through the pipe")
        os.close(descriptors[0])
        assert os.read(reading, 100) == b"through the pipe"
        os.close(reading)
