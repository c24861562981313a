"""Need 6: nest_asyncio, and tools that read the loop's queues."""

from __future__ import annotations

import asyncio
import sys

import pytest
from support import run_child

Loop = asyncio.AbstractEventLoop


def run_turns(loop: Loop, count: int) -> None:
    for _ in range(count):
        loop.call_soon(loop.stop)
        loop.run_forever()


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="nest_asyncio 1.6 does not know Python 3.14's tasks")
def test_need_6_nest_asyncio(loop_name: str) -> None:
    """run_until_complete within a running loop, with traffic on both levels."""
    done = run_child(
        """
        import warnings
        warnings.simplefilter("ignore")
        import nest_asyncio

        loop = new_child_loop()
        asyncio.set_event_loop(loop)
        nest_asyncio.apply(loop)

        async def inner(number):
            async with pair(Recorder, Echo) as ends:
                ends.client.transport.write(b"inner%d" % number)
                return bytes(await ends.client.bytes_received(6))

        class Nesting(Recorder):
            results = []
            def data_received(self, data):
                super().data_received(data)
                self.results.append(loop.run_until_complete(inner(len(self.results))))
                self.transport.write(data)

        async def outer():
            async with pair(Recorder, Nesting) as ends, pair(Recorder, Nesting) as others:
                for count in range(1, 4):
                    ends.client.transport.write(b"x")
                    others.client.transport.write(b"y")
                    await ends.client.bytes_received(count)
                    await others.client.bytes_received(count)
                assert bytes(ends.client.received) == b"xxx" and bytes(others.client.received) == b"yyy"
            return loop.run_until_complete(asyncio.sleep(0.01, "slept"))

        print(loop.run_until_complete(outer()))
        print(len(Nesting.results), all(result.startswith(b"inner") for result in Nesting.results))
        loop.close()
        """,
        loop_name,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "slept\n6 True\n"


def test_need_6_ready_and_scheduled_are_there(loop: Loop) -> None:
    """Home Assistant and others read them."""
    timer = loop.call_later(60, print)
    handle = loop.call_soon(int)
    ready, scheduled = loop._ready, loop._scheduled  # type: ignore[attr-defined]
    assert list(ready) == [handle] and len(ready) == 1 and handle in ready and bool(ready)
    assert type(scheduled) is list and scheduled == [timer]
    timer.cancel()
    run_turns(loop, 2)
    assert not ready
