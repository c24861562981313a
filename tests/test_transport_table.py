"""`loop._transports`: which transport has a descriptor; asyncio's own and others' transports are held weakly there."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest
from support import is_ours

from velociloop.transports.table import TransportTable


class Transport:
    """Something that can be referred to weakly."""


def test_it_is_a_mapping() -> None:
    table = TransportTable()
    own, other = Transport(), Transport()
    table.own[5] = own
    table[7] = other
    assert dict(table) == {5: own, 7: other}
    assert len(table) == 2
    assert table[5] is own
    assert table.get(7) is other
    assert table.get(9) is None
    assert repr(table) == "<TransportTable own=1 others=1>"
    with pytest.raises(KeyError):
        table[9]
    del table[5], table[7]
    assert not table
    with pytest.raises(KeyError):
        del table[5]


def test_others_are_held_weakly() -> None:
    table = TransportTable()
    table[7] = Transport()
    gc.collect()
    assert 7 not in table


def test_the_last_one_counts() -> None:
    """Whose descriptor was closed behind its back has it no longer."""
    table = TransportTable()
    own, other = Transport(), Transport()
    table.own[5] = own
    table[5] = other
    assert (table[5], len(table)) == (other, 1)
    table.own[5] = own
    assert (table[5], len(table), list(table)) == (own, 1, [5])


async def test_a_loops_table_knows_its_transports() -> None:
    loop: Any = asyncio.get_running_loop()
    server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        sock: Any = writer.get_extra_info("socket")
        assert loop._transports[sock.fileno()].get_extra_info("socket") is sock
        with pytest.raises(RuntimeError, match="is used by transport"):
            loop.add_reader(sock.fileno(), print)
        assert await reader.read() == b""
        number = sock.fileno()
        writer.close()
        await writer.wait_closed()
        if is_ours():  # asyncio leaves it there until it is collected
            assert number not in loop._transports
