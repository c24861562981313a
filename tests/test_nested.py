"""H1: the ring is consumed one record at a time, and survives whatever happens between two records."""

from __future__ import annotations

import asyncio
import io
import os
import socket
from typing import Any

import pytest
from support import RawPeer, Recorder, run_child

Loop = asyncio.AbstractEventLoop


def connections(loop: Loop, *factories: Any) -> list[tuple[Any, Any, RawPeer]]:
    """A transport, protocol and raw peer for each factory; their data arrives in one poll."""

    async def connect() -> list[tuple[Any, Any, RawPeer]]:
        made = []
        for factory in factories:
            near, far = socket.socketpair()
            near.setblocking(False)
            transport, protocol = await loop.create_connection(factory, sock=near)
            transport.pause_reading()
            made.append((transport, protocol, RawPeer(far)))
        return made

    return loop.run_until_complete(connect())


def send_at_once(made: list[tuple[Any, Any, RawPeer]], *data: bytes) -> None:
    for (transport, _, peer), piece in zip(made, data, strict=True):
        peer.sock.sendall(piece)
        transport.resume_reading()


def run_turns(loop: Loop, count: int) -> None:
    for _ in range(count):
        loop.call_soon(loop.stop)
        loop.run_forever()


def end(loop: Loop, made: list[tuple[Any, Any, RawPeer]]) -> None:
    for transport, _, peer in made:
        transport.abort()
        peer.sock.close()
    run_turns(loop, 6)


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_H1_an_interrupt_in_one_protocol_loses_nothing_of_the_next(
    loop: Loop, error: type[BaseException], debug: bool
) -> None:
    """Need 22, seen with uvloop: KeyboardInterrupt in A's data_received lost B's bytes."""

    class Interrupting(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            raise error

    loop.set_debug(debug)
    made = connections(loop, Interrupting, Interrupting, Recorder, Interrupting, Recorder)
    send_at_once(made, b"A", b"B", b"C", b"D", b"E")
    caught = 0
    for _ in range(12):
        try:
            run_turns(loop, 1)
        except error:
            caught += 1
    assert caught == 3
    assert [bytes(protocol.received) for _, protocol, _ in made] == [b"A", b"B", b"C", b"D", b"E"]
    end(loop, made)


@pytest.mark.parametrize(
    "method", ["connection_made", "data_received", "eof_received", "connection_lost", "resume_writing"]
)
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_need_22_every_callback_of_a_protocol_may_interrupt(
    loop_name: str, error: type[BaseException], method: str
) -> None:
    done = run_child(
        f"""
        class Interrupting(Recorder):
            pass

        def interrupt(self, *args):
            raise {error.__name__}("from " + {method!r})

        setattr(Interrupting, {method!r}, interrupt)
        loop = new_child_loop()
        near, far = socket.socketpair()
        near.setblocking(False)
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)

        async def main():
            transport, protocol = await loop.create_connection(Interrupting, sock=near)
            transport.write(bytes(200000))
            left = 200000
            while left:
                left -= len(await loop.run_in_executor(None, far.recv, left))
            await turns()
            far.send(b"x")
            await turns(5)
            far.shutdown(socket.SHUT_WR)
            await asyncio.sleep(HANG_S)

        try:
            loop.run_until_complete(main())
        except {error.__name__} as caught:
            print("ended by", caught)
        os._exit(0)
        """,
        loop_name,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"ended by from {method}\n", done.stderr


@pytest.mark.ours("asyncio's own turn is not re-entrant (IndexError); nest_asyncio replaces it")
def test_H1_a_nested_turn_hands_each_its_own_bytes(loop: Loop) -> None:
    """A callback that runs a turn itself (nest_asyncio does) gets the rest dispatched, each to its owner."""

    class Nesting(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            # What nest_asyncio does, in short; asyncio's own guard is about run_forever.
            for _ in range(3):
                loop._run_once()  # type: ignore[attr-defined]

    made = connections(loop, Nesting, Recorder, Nesting, Recorder)
    for number in range(20):
        send_at_once(made, *(b"%c%02d" % (letter, number) for letter in b"ABCD"))
        run_turns(loop, 4)
    expected = [b"".join(b"%c%02d" % (letter, number) for number in range(20)) for letter in b"ABCD"]
    assert [bytes(protocol.received) for _, protocol, _ in made] == expected
    end(loop, made)


@pytest.mark.ours("asyncio's own turn is not re-entrant (IndexError); nest_asyncio replaces it")
def test_H1_nested_turns_while_data_streams_in(loop: Loop) -> None:
    """The slab that an outer frame still reads from is not reused by the polls inside it."""
    depth = 0

    class Nesting(Recorder):
        def data_received(self, data: bytes) -> None:
            nonlocal depth
            kept = bytes(data)
            if depth < 5:
                depth += 1
                for _ in range(2):
                    loop._ready.append(asyncio.Handle(int, (), loop))  # type: ignore[attr-defined]
                    loop._run_once()  # type: ignore[attr-defined]
                depth -= 1
            assert data == kept
            self.chunks.append(data)
            super().data_received(data)

        def __init__(self) -> None:
            super().__init__()
            self.chunks: list[bytes] = []

    made = connections(loop, *[Nesting] * 6)
    total = [0] * 6
    for number in range(40):
        for index, (transport, _, peer) in enumerate(made):
            peer.sock.sendall(bytes([index]) * (1000 + number))
            total[index] += 1000 + number
            transport.resume_reading()
        run_turns(loop, 1)
    run_turns(loop, 100)
    for index, (_, protocol, _) in enumerate(made):
        assert bytes(protocol.received) == bytes([index]) * total[index]
    end(loop, made)


def test_H1_what_an_interrupt_left_comes_before_what_stood_behind_it(loop: Loop) -> None:
    """asyncio has a handle for each ready descriptor, before the due timers; so the order of one run holds for two."""
    ran: list[str] = []

    class Interrupting(Recorder):
        def data_received(self, data: bytes) -> None:
            ran.append(data.decode())
            if data in (b"A", b"B"):
                raise KeyboardInterrupt

    made = connections(loop, *[Interrupting] * 4)
    send_at_once(made, b"A", b"B", b"C", b"D")
    loop.call_at(loop.time() - 1, ran.append, "timer")
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            loop.run_forever()
    run_turns(loop, 1)
    assert sorted(ran[:4]) == ["A", "B", "C", "D"]
    assert ran[4] == "timer"
    end(loop, made)


@pytest.mark.ours("asyncio's own turn is not re-entrant (IndexError); nest_asyncio replaces it")
def test_H1_a_nested_turn_leaves_the_outer_frames_bytes_alone(loop: Loop) -> None:
    """A BufferedProtocol takes what was received in pieces; turns in between must not overwrite the rest."""

    class Piecewise(asyncio.BufferedProtocol):
        def __init__(self) -> None:
            self.buffer = bytearray(10)
            self.received = bytearray()
            self.nested = False

        def get_buffer(self, sizehint: int) -> bytearray:
            return self.buffer

        def buffer_updated(self, nbytes: int) -> None:
            self.received += self.buffer[:nbytes]
            if not self.nested:
                self.nested = True
                made[1][2].sock.sendall(b"other data, long enough to cover it all " * 10)
                for _ in range(3):
                    loop._ready.append(asyncio.Handle(int, (), loop))  # type: ignore[attr-defined]
                    loop._run_once()  # type: ignore[attr-defined]
                self.nested = False

    made = connections(loop, Piecewise, Recorder)
    whole = bytes(range(200))
    send_at_once(made, whole, b"x")
    run_turns(loop, 10)
    assert made[0][1].received == whole
    assert made[1][1].received.startswith(b"x") or made[1][1].received.endswith(b"x")
    end(loop, made)


def test_H1_closing_a_neighbour_skips_its_records(loop: Loop) -> None:
    """Records of owners that were closed meanwhile are skipped, also when another takes the same descriptor."""
    made: list[tuple[Any, Any, RawPeer]] = []

    class Closing(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            for transport, protocol, _ in made:
                if protocol is not self:
                    transport.abort()

    made += connections(loop, *[Closing] * 5)
    send_at_once(made, b"A", b"B", b"C", b"D", b"E")
    run_turns(loop, 10)
    assert sum(bool(protocol.received) for _, protocol, _ in made) == 1
    assert sum("lost" in protocol.events for _, protocol, _ in made) == 4
    end(loop, made)


def test_H1_connection_made_stops_the_loop(loop: Loop) -> None:
    """stop() between two records: what was received already is delivered in this run or the next, once."""

    class Stopping(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            loop.stop()

    made = connections(loop, *[Stopping] * 4)
    send_at_once(made, b"A", b"B", b"C", b"D")
    run_turns(loop, 5)
    assert [bytes(protocol.received) for _, protocol, _ in made] == [b"A", b"B", b"C", b"D"]
    end(loop, made)


@pytest.mark.ours("asyncio's readers cannot run in a turn that they run themselves")
def test_H1_a_nested_turn_within_a_pipes_data_received(loop: Loop) -> None:
    far_ends: list[int] = []

    class Nesting(Recorder):
        depth = 0

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.depth < 3:
                self.depth += 1
                os.write(far_ends[0], b"n")
                loop._run_once()  # type: ignore[attr-defined]
                loop._run_once()  # type: ignore[attr-defined]

    async def connect() -> tuple[Any, Any]:
        near, far = os.pipe()
        far_ends.append(far)
        made: tuple[Any, Any] = await loop.connect_read_pipe(Nesting, io.FileIO(near, "r"))
        return made

    transport, protocol = loop.run_until_complete(connect())
    os.write(far_ends[0], b"1")
    run_turns(loop, 1)
    assert bytes(protocol.received) == b"1nnn"
    # And in one that is told of bytes held back by a pause.
    transport.pause_reading()
    transport._received.append(b"2")
    protocol.depth = 2
    transport.resume_reading()
    run_turns(loop, 5)
    assert bytes(protocol.received) == b"1nnn2n"
    transport.close()
    os.close(far_ends[0])
    run_turns(loop, 3)
