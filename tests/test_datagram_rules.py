"""Datagram transports in nested turns (H1), in forked children and in other threads (H11)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support import LOCALHOST, DatagramRecorder, run_child, turns, udp_socket

Loop = asyncio.AbstractEventLoop


@pytest.mark.ours("asyncio's own turn is not re-entrant (IndexError); nest_asyncio replaces it")
def test_H1_a_nested_turn_in_datagram_received(loop: Loop) -> None:
    class Nesting(DatagramRecorder):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            super().datagram_received(data, addr)
            for _ in range(2):
                loop._run_once()  # type: ignore[attr-defined]

    async def start() -> Any:
        return await loop.create_datagram_endpoint(Nesting, local_addr=(LOCALHOST, 0))

    transport, protocol = loop.run_until_complete(start())
    with udp_socket() as peer:
        for number in range(10):
            peer.sendto(b"%d" % number, transport.get_extra_info("sockname"))
        loop.run_until_complete(protocol.count(10))
    assert sorted(protocol.payloads) == [b"%d" % number for number in range(10)]
    transport.abort()
    loop.run_until_complete(turns())


@pytest.mark.ours("asyncio's child writes to the shared socket")
def test_H11_a_forked_child_may_not_send(loop_name: str) -> None:
    done = run_child(
        """
        loop = new_child_loop()

        async def main():
            async with endpoint(DatagramEcho) as (transport, protocol):
                name = transport.get_extra_info("sockname")
                child = os.fork()
                if child == 0:
                    status = 0
                    for host in LOCALHOST, "localhost":
                        try:
                            transport.sendto(b"child", (host, name[1]))
                        except RuntimeError:
                            status += 1
                    os._exit(status)
                assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
                async with endpoint(remote_addr=name) as (client, echoed):
                    client.sendto(b"parent")
                    assert await echoed.count(1) == [b"parent"]
                assert protocol.payloads == [b"parent"]

        loop.run_until_complete(main())
        loop.close()
        """,
        loop_name,
        "-W",
        "ignore::DeprecationWarning",
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.ours("asyncio's transports work by luck from another thread")
def test_H11_sending_from_another_thread_while_polling_is_refused(loop_name: str) -> None:
    done = run_child(
        """
        outcomes = []

        async def main():
            loop = asyncio.get_running_loop()
            async with endpoint() as (transport, protocol):
                await turns(5)
                name = transport.get_extra_info("sockname")
                main_thread = threading.main_thread().native_id
                done = loop.create_future()

                def misuse():
                    until_blocked(os.getpid(), main_thread)
                    for host in LOCALHOST, "localhost":
                        try:
                            transport.sendto(b"x", (host, name[1]))
                        except RuntimeError:
                            outcomes.append("refused")
                    loop.call_soon_threadsafe(done.set_result, None)

                thread = threading.Thread(target=misuse)
                thread.start()
                await in_time(done)
                thread.join()
                assert not transport.is_closing()

        loop = new_child_loop()
        loop.run_until_complete(main())
        loop.close()
        assert outcomes == ["refused"] * 2, outcomes
        """,
        loop_name,
    )
    assert done.returncode == 0, done.stderr
