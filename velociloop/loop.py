"""The event loop.

What not every program uses (connections, pipes, child processes, TLS) is imported when it is first asked for: it is
half of the time that importing velociloop took.  Nor is ``typing`` imported by what is imported here: on CPython 3.14,
whose asyncio does without it, it was a quarter of what was left.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ._compat import SSL_HANDSHAKE_TIMEOUT, SSL_SHUTDOWN_TIMEOUT, SelectorEventLoop, weak_dict_of
from ._platform import at_fork
from .api import resolve, signals, sockets
from .scheduling.callbacks import CallbackScope
from .scheduling.dispatch import Dispatcher, DrainHandle
from .scheduling.turn import LoopBase, register_loop, run_once
from .scheduling.wakeup import SignalWakeup
from .transports.table import TransportTable
from .transports.waits import SocketWaits
from .uv.core import Core, Statistics, stdio_held
from .uv.selector import Selector, no_preparation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeVarTuple

    _Ts = TypeVarTuple("_Ts")

__all__ = ["Loop", "Statistics", "new_event_loop"]


@register_loop
class Loop(LoopBase, sockets.SocketMethods):
    """asyncio's selector event loop, with libuv as its selector and under its transports.

    Everything that asyncio documents is inherited or overridden; see docs/architecture.md for
    which, and docs/differences.md for what differs on purpose.
    """

    def __init__(self, selector: Any = None) -> None:
        """``selector`` is accepted for compatibility with ``asyncio.SelectorEventLoop``.

        It is closed: the loop's selector is libuv.
        """
        if selector is not None:
            selector.close()
        self._core = Core()
        self._scope = CallbackScope()
        self._listeners: dict[int, Any] = {}
        self._watches: Any = None  # of pipes, which make it
        self._user_sockets: set[int] = set()
        self._waits = SocketWaits(self, self._core, self._scope)
        self._wakeup = SignalWakeup()
        self._signal_watches = signals.SignalWatches(self, self._core)
        try:
            with stdio_held():
                self._uv_selector = Selector(self._core, self._scope.suspend)
                super().__init__(self._uv_selector)  # makes the self-pipe
        except BaseException:
            # Out of descriptors, say.  Nobody will ever close this half of a loop.
            self._closed = True
            self._core.close()
            raise
        self._dispatcher = Dispatcher(self._core, self._scope, self._requeue, self._report_defect)
        self._drain_handle = DrainHandle(self._dispatcher, self)
        self._uv_selector.before_wait = self._arm_wakeup
        self._uv_selector.on_foreign = self._adopt
        self._transports = TransportTable()
        self._waits.attach(self._uv_selector.watched, self._transports.own, weak_dict_of(self._transports.others))
        self._attach(
            self._core.pointer, self._core.address, self._scope, self._uv_selector, no_preparation, self._drain_handle
        )
        _live_loops.add(self)

    def statistics(self) -> Statistics:
        """Return the loop's counters (``handles``: what is open now; all 0 once closed)."""
        found = self._core.statistics()
        own = 0 if self.is_closed() else 1  # the selector's handle is the loop's own
        return Statistics(
            handles=found.handles - own,
            closing=found.closing,
            writes=found.writes,
            records=found.records,
            polls=found.polls,
            ring_segments=found.ring_segments,
            slab_segments=found.slab_segments,
        )

    # -- the turn -----------------------------------------------------------------

    def run_forever(self) -> None:
        """Run until :meth:`stop`; see ``asyncio.loop.run_forever``.

        Raises OSError if somebody has closed libuv's own descriptor.
        """
        # Early 3.13 refuses a run inside its own try, whose finally then ends the one that is going on.
        self._check_closed()
        self._check_running()
        if self._core.foreign:
            self._adopt()
        self._core.check()
        self._quiet_polls = 0
        try:
            super().run_forever()
        finally:
            self._quiet_polls = -1
            self._disarm_wakeup()

    def _turn_in_python(self) -> None:
        if self._debug:
            # asyncio's own turn, with its messages.  Nothing is corked there.
            # By name, since LoopBase may have one that comes here.
            SelectorEventLoop._run_once(self)
        else:
            run_once(self, self._scope)

    def _process_events(self, event_list: Any) -> None:
        if event_list:
            super()._process_events(event_list)
        if not self._uv_selector.has_records:
            return
        if not self._debug:
            self._ready.append(self._drain_handle)
            return
        # One Handle a record, so that "Executing <Handle ...> took ..." names the transport.
        for owner in self._dispatcher.owners_of_pending():
            self._ready.append(asyncio.Handle(self._dispatch_one, (owner,), self))

    def _dispatch_one(self, owner: Any) -> None:
        """Dispatch the next record; ``owner`` is there for the Handle's repr."""
        self._dispatcher.dispatch_one()

    def _requeue(self, handle: asyncio.Handle) -> None:
        self._ready.appendleft(handle)

    def _report_defect(self, exc: BaseException, owner: Any) -> None:
        self.call_exception_handler(
            {"message": f"Defect in velociloop while dispatching to {owner!r}", "exception": exc}
        )

    def _write_to_self(self) -> None:
        self._core.wake()

    # -- signals ------------------------------------------------------------------

    def _arm_wakeup(self) -> None:
        self._uv_selector.wait_unprepared()
        self._wakeup.arm(self._csock.fileno())

    def _disarm_wakeup(self) -> None:
        if self.is_closed():
            return
        # asyncio leaves the descriptor set while there are handlers: their signals count
        # between two runs as well.
        if not self._signal_handlers:
            self._wakeup.restore()
        self._uv_selector.before_wait = self._arm_wakeup

    def add_signal_handler(self, sig: int, callback: Callable[[*_Ts], Any], *args: *_Ts) -> None:
        """See ``asyncio.loop.add_signal_handler``."""
        self._check_usable()
        previous = self._signal_watches.action(sig)
        if not self.is_closed():
            self._wakeup.arm(self._csock.fileno())  # asyncio sets it too, and forgets whose it was
        try:
            super().add_signal_handler(sig, callback, *args)
        finally:
            self._wakeup_was_touched()
        self._signal_watches.take_over(sig, previous)

    def remove_signal_handler(self, sig: int) -> bool:
        """See ``asyncio.loop.remove_signal_handler``."""
        if not self._core.foreign:  # a forked child may clean up: 3.11's child watchers do, in set_event_loop()
            self._check_usable()
        try:
            removed = super().remove_signal_handler(sig)
        finally:
            self._wakeup_was_touched()
        if removed:
            self._signal_watches.give_back(sig)
        return removed

    def _check_usable(self) -> None:
        # Before asyncio changes anything: what the shim then refused (another thread waits in the loop, a forked
        # child has not taken it into use), would be half done.
        if not self.is_closed():
            self._core.check()

    def _wakeup_was_touched(self) -> None:
        # asyncio sets the wakeup descriptor so that Python prints each signal for which it is full, although it wakes
        # the loop then, too.  With the last handler, or a failure, asyncio unsets it.  Ctrl-C needs it while the loop
        # runs, and afterwards whoever had set one before the loop did.
        if self.is_closed():
            return
        self._wakeup.set_again()
        if not self._signal_handlers:
            if self.is_running():
                self._uv_selector.before_wait = self._arm_wakeup
            else:
                self._wakeup.restore()

    # -- names ------------------------------------------------------------------------

    async def getaddrinfo(
        self, host: Any, port: Any, *, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0  # noqa: A002
    ) -> Any:
        """See ``asyncio.loop.getaddrinfo``.  A numeric host needs no thread."""
        if not (flags or self._debug or self._closed):
            answer = resolve.numeric_answer(host, port, family, type, proto, flags)
            if answer is not None:
                return answer
        if self._debug or not resolve.needs_no_lookup(host, port, flags):
            return await super().getaddrinfo(host, port, family=family, type=type, proto=proto, flags=flags)
        self._check_closed()
        return socket.getaddrinfo(host, port, family, type, proto, flags)

    async def getnameinfo(self, sockaddr: Any, flags: int = 0) -> Any:
        """See ``asyncio.loop.getnameinfo``.  A numeric answer needs no thread."""
        if not resolve.needs_no_reverse_lookup(flags):
            return await super().getnameinfo(sockaddr, flags)
        self._check_closed()
        return socket.getnameinfo(sockaddr, flags)

    # -- connections ----------------------------------------------------------------

    @contextmanager
    def _given_by_user(self, sock: Any) -> Iterator[None]:
        """Within, ``sock`` is known as the user's, not one that asyncio's code has made.

        asyncio makes the transport of a given socket before it waits for anything, so two calls with the
        same socket cannot take the mark from each other.
        """
        self._user_sockets.add(id(sock))
        try:
            yield
        finally:
            self._user_sockets.discard(id(sock))

    def _is_user_socket(self, sock: socket.socket) -> bool:
        """Return whether ``sock`` came in through a ``sock=`` argument."""
        return id(sock) in self._user_sockets

    async def create_connection(
        self, protocol_factory: Any, *args: Any, sock: Any = None, **kwargs: Any
    ) -> Any:
        """See ``asyncio.loop.create_connection``."""
        if sock is None:
            return await super().create_connection(protocol_factory, *args, **kwargs)
        with self._given_by_user(sock):
            return await super().create_connection(protocol_factory, *args, sock=sock, **kwargs)

    async def create_unix_connection(
        self, protocol_factory: Any, path: Any = None, *, sock: Any = None, **kwargs: Any
    ) -> Any:
        """See ``asyncio.loop.create_unix_connection``."""
        if sock is None:
            return await super().create_unix_connection(protocol_factory, path, **kwargs)
        with self._given_by_user(sock):
            return await super().create_unix_connection(protocol_factory, path, sock=sock, **kwargs)

    async def connect_accepted_socket(
        self, protocol_factory: Any, sock: Any, **kwargs: Any
    ) -> Any:
        """See ``asyncio.loop.connect_accepted_socket``."""
        with self._given_by_user(sock):
            return await super().connect_accepted_socket(protocol_factory, sock, **kwargs)

    async def create_datagram_endpoint(
        self, protocol_factory: Any, *args: Any, sock: Any = None, **kwargs: Any
    ) -> Any:
        """See ``asyncio.loop.create_datagram_endpoint``."""
        if sock is None:
            return await super().create_datagram_endpoint(protocol_factory, *args, **kwargs)
        with self._given_by_user(sock):
            return await super().create_datagram_endpoint(protocol_factory, *args, sock=sock, **kwargs)

    def _make_datagram_transport(
        self, sock: Any, protocol: Any, address: Any = None, waiter: Any = None, extra: Any = None
    ) -> Any:
        from .api import datagrams

        if not datagrams.is_for_libuv(sock):
            return super()._make_datagram_transport(sock, protocol, address, waiter, extra)
        return datagrams.make_datagram_transport(self, sock, protocol, address, waiter, extra)

    def _make_socket_transport(
        self, sock: Any, protocol: Any, waiter: Any = None, *, extra: Any = None, server: Any = None
    ) -> Any:
        from .api import streams

        return streams.make_socket_transport(self, sock, protocol, waiter, extra, server)

    def _make_ssl_transport(
        self,
        rawsock: Any,
        protocol: Any,
        sslcontext: Any,
        waiter: Any = None,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
        extra: Any = None,
        server: Any = None,
        ssl_handshake_timeout: float | None = SSL_HANDSHAKE_TIMEOUT,
        ssl_shutdown_timeout: float | None = SSL_SHUTDOWN_TIMEOUT,
    ) -> Any:
        from .api import streams, tls

        layer = tls.make_tls_protocol(
            self,
            protocol,
            sslcontext,
            waiter,
            server_side=server_side,
            server_hostname=server_hostname,
            ssl_handshake_timeout=ssl_handshake_timeout,
            ssl_shutdown_timeout=ssl_shutdown_timeout,
        )
        transport = layer._app_transport
        streams.make_socket_transport(self, rawsock, layer, None, extra, server)
        return transport

    async def start_tls(
        self,
        transport: Any,
        protocol: Any,
        sslcontext: Any,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
    ) -> Any:
        """See ``asyncio.loop.start_tls``."""
        from .api import tls

        return await tls.start_tls(
            self,
            transport,
            protocol,
            sslcontext,
            server_side=server_side,
            server_hostname=server_hostname,
            ssl_handshake_timeout=ssl_handshake_timeout,
            ssl_shutdown_timeout=ssl_shutdown_timeout,
        )

    def _make_read_pipe_transport(self, pipe: Any, protocol: Any, waiter: Any = None, extra: Any = None) -> Any:
        from .api import pipes

        return pipes.make_read_pipe_transport(self, pipe, protocol, waiter, extra)

    def _make_write_pipe_transport(self, pipe: Any, protocol: Any, waiter: Any = None, extra: Any = None) -> Any:
        from .api import pipes

        return pipes.make_write_pipe_transport(self, pipe, protocol, waiter, extra)

    # -- servers ------------------------------------------------------------------------

    async def create_server(self, *args: Any, start_serving: bool = True, **kwargs: Any) -> Any:
        """See ``asyncio.loop.create_server``.  Cancelled, it leaves no server behind."""
        from .api import serve

        server = await super().create_server(*args, start_serving=False, **kwargs)
        return await serve.started(server) if start_serving else server

    async def create_unix_server(self, *args: Any, start_serving: bool = True, **kwargs: Any) -> Any:
        """See ``asyncio.loop.create_unix_server``.  Cancelled, it leaves no server behind."""
        from .api import serve

        server = await super().create_unix_server(*args, start_serving=False, **kwargs)
        return await serve.started(server) if start_serving else server

    def _start_serving(
        self,
        protocol_factory: Any,
        sock: Any,
        sslcontext: Any = None,
        server: Any = None,
        backlog: int = 100,
        ssl_handshake_timeout: float | None = SSL_HANDSHAKE_TIMEOUT,
        ssl_shutdown_timeout: float | None = SSL_SHUTDOWN_TIMEOUT,
    ) -> None:
        from .api import serve

        serve.start_serving(
            self, protocol_factory, sock, sslcontext, server, backlog, ssl_handshake_timeout, ssl_shutdown_timeout
        )

    def _stop_serving(self, sock: Any) -> None:
        from .api import serve

        serve.stop_serving(self, sock)
        super()._stop_serving(sock)

    # -- child processes --------------------------------------------------------------

    async def _make_subprocess_transport(
        self,
        protocol: Any,
        args: Any,
        shell: bool,
        stdin: Any,
        stdout: Any,
        stderr: Any,
        bufsize: int,
        extra: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        from .api import subprocess

        return await subprocess.make_subprocess_transport(
            self, protocol, args, shell, stdin, stdout, stderr, bufsize, extra, **kwargs
        )

    # -- the end --------------------------------------------------------------------

    def close(self) -> None:
        """Close the loop; see ``asyncio.loop.close``.

        Transports that are still open warn (ResourceWarning) and are closed.
        """
        if self.is_running():
            raise RuntimeError("Cannot close a running event loop")
        if self.is_closed():
            return
        if self._core.foreign:
            self._adopt()
        self._wakeup.mute(self._csock.fileno())  # super().close() closes it before it removes the signal handlers
        for owner in list(self._core.registry.owners.values()):
            owner.on_loop_close()
        self._waits.on_loop_close()
        self._listeners.clear()
        self._transports.own.clear()  # so that an abandoned one is collected, and warns
        try:
            super().close()  # ValueError in another thread, if there are signal handlers
        finally:
            self._wakeup.restore()  # not before: with the last signal handler asyncio unsets the descriptor
            self._core.close()

    # -- fork (H11) -------------------------------------------------------------------

    def _abandon(self) -> None:
        """In a forked child: nothing of this loop may be touched that the parent shares."""
        if self.is_closed():
            return
        self._core.abandon()
        self._signal_watches.abandon()
        self._wakeup.abandon(self._csock.fileno())
        self._uv_selector.abandon()
        self._scope.abandon()

    def _adopt(self) -> None:
        """In a forked child: take the inherited loop into use, with kernel objects of its own."""
        self._core.adopt()
        for owner in list(self._core.registry.owners.values()):
            owner.on_adopt()
        self._signal_watches.adopt()
        self._waits.on_adopt()
        with stdio_held():
            self._uv_selector.adopt()
            # The self-pipe is shared too: a byte written by one process would wake the other.
            self._close_self_pipe()
            self._make_self_pipe()
        self._uv_selector.before_wait = self._arm_wakeup


def new_event_loop() -> Loop:
    """Return a new :class:`Loop`; for ``asyncio.Runner(loop_factory=...)`` and the like.

    Raises OSError if the process is out of descriptors.
    """
    return Loop()


_live_loops: weakref.WeakSet[Loop] = weakref.WeakSet()
_forking = threading.local()


def _before_fork() -> None:
    # Until _abandon() has stopped it, libuv's signal handler in the child would tell the parent (H10).
    caught = {number for loop in list(_live_loops) for number in loop._signal_watches.signals()}
    _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, caught) if caught else None


def _after_fork_in_parent() -> None:
    if _forking.mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)


def _after_fork_in_child() -> None:
    for loop in list(_live_loops):
        loop._abandon()
    _after_fork_in_parent()


at_fork(_before_fork, _after_fork_in_parent, _after_fork_in_child)
