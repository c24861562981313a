"""Which context variables a protocol's callbacks see: exactly those that they see in asyncio."""

from __future__ import annotations

import asyncio
import contextvars
import socket
from typing import Any

import pytest
from support import Recorder, in_time, raw_connection, serving, turns

pytestmark = pytest.mark.debug_variant

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


class Looking(Recorder):
    """Writes down what `variable` holds in each callback, and sets it to the callback's name."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, str]] = []

    def look(self, name: str) -> None:
        self.seen.append((name, variable.get()))
        variable.set(name)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.look("made")
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        self.look("data")
        super().data_received(data)

    def eof_received(self) -> bool:
        self.look("eof")
        return super().eof_received()

    def pause_writing(self) -> None:
        self.look("pause")
        super().pause_writing()

    def resume_writing(self) -> None:
        self.look("resume")
        super().resume_writing()

    def connection_lost(self, exc: BaseException | None) -> None:
        self.look("lost")
        super().connection_lost(exc)


async def test_a_connections_callbacks() -> None:
    """connection_made and reading have a copy each of the maker's context; reads share theirs, one after another."""
    variable.set("maker")
    async with raw_connection(Looking) as (_, protocol, peer):
        variable.set("changed")
        for count in 1, 2:
            peer.sock.sendall(b"x")
            await protocol.bytes_received(count)
        peer.sock.close()
        await in_time(protocol.lost)
        await turns()
    # A reader of the selector loop is one Handle: what the first call sets the second one sees.
    assert protocol.seen[:4] == [("made", "maker"), ("data", "maker"), ("data", "data"), ("eof", "data")]
    assert protocol.seen[4] == ("lost", "eof")


async def test_after_resume_reading() -> None:
    """asyncio makes a new reader when reading is resumed: it has the context of whoever resumed."""
    variable.set("maker")
    async with raw_connection(Looking) as (transport, protocol, peer):
        transport.pause_reading()
        variable.set("resumer")
        transport.resume_reading()
        peer.sock.sendall(b"x")
        await protocol.bytes_received(1)
        assert protocol.seen == [("made", "maker"), ("data", "resumer")]


async def test_flow_control() -> None:
    """pause_writing runs within write(), resume_writing in the writer's context: that of the write that waited."""
    variable.set("maker")
    async with raw_connection(Looking, "unix", small_buffers=True) as (transport, protocol, peer):
        variable.set("writer")
        transport.write(bytes(1_000_000))
        assert protocol.seen[-1] == ("pause", "writer")
        variable.set("reader")
        await peer.receive_all(1_000_000)
        await in_time(protocol.resumed.wait())
        assert protocol.seen[-1][0] == "resume"
        assert protocol.seen[-1][1] in ("writer", "pause")


async def test_accepted_connections_have_the_servers_context() -> None:
    made: list[Looking] = []

    def accept() -> Looking:
        made.append(Looking())
        made[-1].look("factory")
        return made[-1]

    variable.set("server")
    async with serving(accept) as (_, address):
        variable.set("later")
        for count in 1, 2:
            with socket.create_connection(address) as client:
                client.sendall(b"x")
                while len(made) < count:
                    await asyncio.sleep(0)
                await made[-1].bytes_received(1)
            await in_time(made[-1].lost)
    for protocol in made:
        assert [name for name, _ in protocol.seen] == ["factory", "made", "data", "eof", "lost"]
    assert made[0].seen[0] == ("factory", "server")
    assert "later" not in {value for protocol in made for _, value in protocol.seen}


async def test_tasks_of_two_connections_do_not_share() -> None:
    async with raw_connection(Looking) as (_, one, peer1), raw_connection(Looking) as (_, two, peer2):
        for protocol, peer in (one, peer1), (two, peer2):
            peer.sock.sendall(b"x")
            await protocol.bytes_received(1)
        assert one.seen[-1] == two.seen[-1] == ("data", "unset")
        assert variable.get() == "unset"


async def test_a_task_made_in_data_received_inherits() -> None:
    results: list[Any] = []

    class Spawning(Recorder):
        def data_received(self, data: bytes) -> None:
            variable.set("from data_received")
            self.task = asyncio.create_task(self.work())
            super().data_received(data)

        async def work(self) -> None:
            await asyncio.sleep(0)
            results.append(variable.get())

    async with raw_connection(Spawning) as (_, protocol, peer):
        peer.sock.sendall(b"x")
        await protocol.bytes_received(1)
        await protocol.task
        assert results == ["from data_received"]
        assert variable.get() == "unset"
