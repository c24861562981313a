"""A listening socket: accepted connections become transports.

What asyncio's ``_accept_connection`` does, with the accepting itself done by the shim.
"""

from __future__ import annotations

import contextvars
import enum
import socket
from asyncio.log import logger
from collections.abc import Callable

from .._accelerator import speedups
from .._compat import ACCEPT_RETRY_DELAY, TransportSocket
from ..uv import errors, ring
from ..uv.registry import Owner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    #: Makes a transport of (key of the stream, raw peer address, protocol).
    Connect = Callable[[int, bytes, Any], Any]

__all__ = ["Listener", "ListenerState"]

# At most so many connections are accepted in one poll, so that a flood of them does not
# keep established ones waiting; asyncio's bound is the backlog.
LARGEST_BATCH = 128


class ListenerState(enum.Enum):
    """What becomes of a connection attempt.

    ::

        LISTENING --out of descriptors or memory, the network--> STARVED --ACCEPT_RETRY_DELAY--> LISTENING
            |                                                      |
            +--the socket itself--> FAILED --close()--> CLOSED     |
            |                                             ^        |
            +--close()------------------------------------+--------+

    STARVED: attempts wait in the backlog.  FAILED: the socket will never accept again (H8: "a
    listener that was shutdown() gives EINVAL forever").
    """

    LISTENING = "listening"
    STARVED = "starved"
    FAILED = "failed"
    CLOSED = "closed"


class Listener(Owner):
    """Accepts on ``sock``, which stays the server's.

    ``protocol_factory`` is called for each connection in a copy of the context that started the
    server; ``connect`` then makes its transport.
    """

    __slots__ = (
        "_connect",
        "_context",
        "_core",
        "_key",
        "_loop",
        "_protocol_factory",
        "_retry",
        "_starvation_reported",
        "_state",
        "fileno",
        "sock",
    )

    def __init__(
        self,
        loop: Any,
        core: Any,
        sock: socket.socket,
        kind: int,
        batch: int,
        protocol_factory: Callable[[], Any],
        connect: Connect,
    ) -> None:
        self._loop = loop
        self._core = core
        self.sock = sock
        self._protocol_factory = protocol_factory
        self._connect = connect
        self._context = contextvars.copy_context()
        self._retry: Any = None
        self._starvation_reported = False
        self.fileno = sock.fileno()  # also once the socket was closed
        self._key = core.open_listener(kind, self.fileno, min(batch, LARGEST_BATCH))
        core.registry.owners[self._key] = self
        self._state = ListenerState.LISTENING

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._state.value} {self.sock!r}>"

    def close(self) -> None:
        """Stop accepting.  The socket is not touched."""
        if self._state is ListenerState.CLOSED:
            return
        self._state = ListenerState.CLOSED
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        self._core.close_handle(self._key)

    def on_accept(self, result: int, slab: Any, offset: int) -> None:
        """See ``Owner``."""
        if result < 0:
            self._context.run(self._stopped, errors.exception_for(result))
            return
        self._starvation_reported = False
        self._context.copy().run(self._accepted, result, ring.raw_address(slab, offset))

    def _accepted(self, key: int, raw_peername: bytes) -> None:
        try:
            protocol = self._protocol_factory()
            if self._state is ListenerState.CLOSED:
                self._closed_meanwhile(key)
                return
            transport = self._connect(key, raw_peername, protocol)
        except BaseException as exc:
            self._accept_failed(key, exc)
            if isinstance(exc, (SystemExit, KeyboardInterrupt)):
                raise
            return
        if self._loop.get_debug():
            peername = transport.get_extra_info("peername")
            logger.debug("%r got a new connection from %r: %r", self, peername, transport)

    def _closed_meanwhile(self, key: int) -> None:
        # The factory has closed the server, whose _attach() would fail now (H8).
        self._core.close_handle(key)

    def _accept_failed(self, key: int, exc: BaseException) -> None:
        self._core.close_handle(key)
        if not isinstance(exc, (SystemExit, KeyboardInterrupt)):
            # asyncio says this in debug mode only, and otherwise drops the connection in silence.
            self._report("Error on transport creation for incoming connection", exc)

    def _stopped(self, exc: OSError | RuntimeError) -> None:
        """The shim has stopped watching because of ``exc``."""
        if isinstance(exc, OSError) and exc.errno not in errors.NEVER_AGAIN:
            self._state = ListenerState.STARVED
            if not self._starvation_reported:
                self._starvation_reported = True
                if exc.errno in errors.OUT_OF_RESOURCES:
                    self._report("socket.accept() out of system resource", exc)
                else:
                    self._report("socket.accept() failed; trying again", exc)
            self._retry = self._loop.call_later(ACCEPT_RETRY_DELAY, self._restart)
            return
        self._state = ListenerState.FAILED
        self._report("socket.accept() failed; this server accepts no more connections on this socket", exc)

    def _restart(self) -> None:
        self._retry = None
        status = self._core.restart_listener(self._key)
        if status < 0:
            self._stopped(errors.exception_for(status))
        else:
            self._state = ListenerState.LISTENING

    def _report(self, message: str, exc: BaseException) -> None:
        self._loop.call_exception_handler(
            {"message": message, "exception": exc, "socket": TransportSocket(self.sock)}
        )

    # -- what an Owner needs besides ----------------------------------------------------

    def enter_anew(self) -> None:
        """See ``Owner``."""
        self._context = self._context.copy()

    def on_loop_close(self) -> None:
        """See ``Owner``.  The socket object warns for itself if nobody closes it."""
        self.close()


if speedups is not None:
    speedups.register_listener(Listener, ListenerState.CLOSED)
