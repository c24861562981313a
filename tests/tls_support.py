"""One TLS layer between a transport of paper and a recording protocol, and a peer made of the ssl module alone.

On velociloop's loop the layer is its engine, on asyncio's it is `sslproto.SSLProtocol`, the oracle: the same bodies
run on both. No bytes come or go but those that a test passes on, cut as it likes.
"""

from __future__ import annotations

import asyncio
import ssl
from asyncio import sslproto
from collections.abc import Iterable
from typing import Any

import pytest
from support import Recorder, is_ours

#: Of a server and of a client.
Contexts = tuple[ssl.SSLContext, ssl.SSLContext]

SIDES = pytest.mark.parametrize("server_side", [False, True], ids=["client", "server"])


class PaperTransport(asyncio.Transport):
    """The transport below: keeps what is written, and ends as asyncio's do."""

    _start_tls_compatible = True

    def __init__(self) -> None:
        super().__init__()
        self.protocol: Any = None
        self.pieces: list[bytes] = []
        self.reading = True
        self.ended: list[BaseException | None] = []

    def write(self, data: Any) -> None:
        if not self.ended:
            self.pieces.append(bytes(data))

    def take(self) -> bytes:
        taken, self.pieces = b"".join(self.pieces), []
        return taken

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True

    def is_closing(self) -> bool:
        return bool(self.ended)

    def close(self) -> None:
        self._force_close(None)

    def _force_close(self, exc: BaseException | None) -> None:
        if not self.ended:
            self.ended.append(exc)
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, exc)

    def abort(self) -> None:
        self._force_close(None)


class Peer:
    """The other end: an SSLObject and its BIOs."""

    def __init__(self, context: ssl.SSLContext, *, server_side: bool = False, **options: Any) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        if not server_side:
            options.setdefault("server_hostname", "localhost")
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_side=server_side, **options)
        self.done = False
        self.received = bytearray()
        self.ended = False

    def step(self, data: bytes = b"") -> bytes:
        """Take `data`, go as far as it leads, give the answer."""
        self.incoming.write(data)
        try:
            if not self.done:
                self.tls.do_handshake()
                self.done = True
            while piece := self.tls.read(65536):
                self.received += piece
            self.ended = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.ended = True
        return self.outgoing.read()

    def write(self, data: bytes) -> bytes:
        self.tls.write(data)
        return self.outgoing.read()

    def close(self) -> bytes:
        try:
            self.tls.unwrap()
        except ssl.SSLWantReadError:
            pass
        return self.outgoing.read()


def new_layer(*args: Any, engine: str | None = None, **options: Any) -> Any:
    """The TLS layer of the running loop; `engine` asks for ``velociloop`` or ``asyncio`` on any loop."""
    loop = asyncio.get_running_loop()
    if engine == "velociloop" or (engine is None and is_ours()):
        from velociloop.scheduling.callbacks import CallbackScope
        from velociloop.transports.tls import TlsProtocol

        return TlsProtocol(loop, getattr(loop, "_scope", None) or CallbackScope(), *args, **options)
    return sslproto.SSLProtocol(loop, *args, **options)


class Wire:
    """A layer under `protocol` above paper, connected with `peer`; `server_side` is the layer's side."""

    def __init__(
        self,
        context: ssl.SSLContext,
        peer: Peer,
        *,
        server_side: bool = False,
        protocol: Any = None,
        engine: str | None = None,
        **options: Any,
    ) -> None:
        self.peer = peer
        self.protocol = protocol or Recorder()
        self.below = PaperTransport()
        self.waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if not server_side:
            options.setdefault("server_hostname", "localhost")
        self.layer = new_layer(
            self.protocol, context, self.waiter, engine=engine, server_side=server_side, **options
        )
        self.transport = self.layer._app_transport
        self.below.protocol = self.layer
        self.layer.connection_made(self.below)

    def feed(self, data: bytes) -> None:
        """As a transport would: whole, or through the buffer of a BufferedProtocol."""
        if self.below.ended or not data:
            return
        if not isinstance(self.layer, asyncio.BufferedProtocol):
            self.layer.data_received(data)
            return
        while data:
            buffer: Any = self.layer.get_buffer(-1)
            size = min(len(buffer), len(data))
            buffer[:size] = data[:size]
            self.layer.buffer_updated(size)
            data = data[size:]

    def feed_in(self, data: bytes, sizes: Iterable[int]) -> None:
        """`data` in pieces of `sizes`, the rest whole."""
        for size in sizes:
            self.feed(data[:size])
            data = data[size:]
        self.feed(data)

    def exchange(self, sizes: Iterable[int] = ()) -> None:
        """Pass on until both ends are silent; what comes to the layer is cut in `sizes`."""
        answer = self.peer.step()
        while True:
            self.feed_in(answer, sizes)
            sent = self.below.take()
            answer = self.peer.step(sent)
            if not sent and not answer:
                return

    def connect(self) -> Wire:
        self.exchange()
        assert self.waiter.done() and self.peer.done
        return self

    async def end(self) -> None:
        """Leave nothing open."""
        self.transport.abort()
        for _ in range(4):
            await asyncio.sleep(0)
        if self.waiter.done() and not self.waiter.cancelled():
            self.waiter.exception()


def wire(contexts: Contexts, server_side: bool = False, **options: Any) -> Wire:
    server, client = contexts
    if server_side:
        return Wire(server, Peer(client), server_side=True, **options)
    return Wire(client, Peer(server, server_side=True), **options)


class Slow(asyncio.BufferedProtocol):
    """Offers a buffer of `room` bytes, and writes down what it gets."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.buffer = bytearray(room)
        self.received = bytearray()
        self.events: list[str] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self.events.append("made")

    def get_buffer(self, sizehint: int) -> memoryview:
        return memoryview(self.buffer)

    def buffer_updated(self, nbytes: int) -> None:
        assert 0 < nbytes <= self.room
        self.received += self.buffer[:nbytes]

    def eof_received(self) -> None:
        self.events.append("eof")

    def connection_lost(self, exc: BaseException | None) -> None:
        self.events.append("lost")
