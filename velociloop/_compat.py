"""Every private asyncio name that velociloop relies on, and nothing else.

One place to look when a new Python comes out.  Each entry says where it lives in the
standard library and on which versions its meaning was checked.  Features are asked for,
versions are not compared.

======================================  ==================  =====================
name                                    module              checked on
======================================  ==================  =====================
``_FlowControlMixin``                   asyncio.transports  3.11 - 3.14, PyPy 3.11
``_SendfileMode``                       asyncio.constants   3.11 - 3.14, PyPy 3.11
``ACCEPT_RETRY_DELAY``                  asyncio.constants   3.11 - 3.14, PyPy 3.11
``LOG_THRESHOLD_FOR_CONNLOST_WRITES``   asyncio.constants   3.11 - 3.14, PyPy 3.11
``SSL_HANDSHAKE_TIMEOUT``               asyncio.constants   3.11 - 3.14, PyPy 3.11
``SSL_SHUTDOWN_TIMEOUT``                asyncio.constants   3.11 - 3.14, PyPy 3.11
``_format_callback_source``             asyncio.format_helpers  3.11, 3.12; 3.13+ with ``debug``
``SSLProtocol``                         asyncio.sslproto    3.11 - 3.14, PyPy 3.11
``FLOW_CONTROL_HIGH_WATER_SSL_READ``    asyncio.constants   3.11 - 3.14, PyPy 3.11
``FLOW_CONTROL_HIGH_WATER_SSL_WRITE``   asyncio.constants   3.11 - 3.14, PyPy 3.11
``_stream_reader``, its ``_buffer``     asyncio.streams     3.11 - 3.14, PyPy 3.11
``TransportSocket``                     asyncio.trsock      3.11 - 3.14, PyPy 3.11
``_set_result_unless_cancelled``        asyncio.futures     3.11 - 3.14, PyPy 3.11
``_SelectorDatagramTransport``          asyncio.selector_events  3.11 - 3.14, PyPy 3.11
``Server._attach`` / ``_detach``        asyncio.base_events 3.11 (no argument), 3.12+
``MAXIMUM_SELECT_TIMEOUT``              asyncio.base_events 3.11 - 3.14, PyPy 3.11
``_MIN_SCHEDULED_TIMER_HANDLES``        asyncio.base_events 3.11 - 3.14, PyPy 3.11
``_MIN_CANCELLED_TIMER_HANDLES_...``    asyncio.base_events 3.11 - 3.14, PyPy 3.11
``BaseSubprocessTransport``             base_subprocess     3.11 - 3.14, PyPy 3.11
``new_event_loop``, as Runner finds it  asyncio.events      3.11 - 3.14, PyPy 3.11
======================================  ==================  =====================

Of ``BaseSubprocessTransport``: ``_start`` and ``_connect_pipes`` are overridden; ``_process_exited``
is called; ``_loop``, ``_proc``, ``_closed`` and ``_pipes`` are read.

A transport below TLS has ``_start_tls_compatible`` and ``_force_close``; ``_app_transport`` and ``_incoming``
of ``SSLProtocol`` are read.

Of ``subprocess.Popen``: ``_execute_child`` and ``_try_wait`` are overridden (the latter is called with
``_waitpid_lock`` held), ``_close_pipe_fds`` and ``_child_created`` are what the first of them owes.

Of PyPy's ``ssl``: ``_cffi_ssl._stdssl.lib.ERR_clear_error``.

Attributes and methods of ``asyncio.SelectorEventLoop`` that :class:`velociloop.Loop`
overrides or reads: ``_selector``, ``_ready``, ``_scheduled``, ``_stopping``, ``_debug``,
``_clock_resolution``, ``_timer_cancelled_count``, ``_transports``, ``_signal_handlers``,
``_csock``, ``_run_once``, ``_process_events``, ``_write_to_self``, ``_make_self_pipe``,
``_close_self_pipe``, ``_make_socket_transport``, ``_make_ssl_transport``,
``_make_datagram_transport``, ``_start_serving``, ``_stop_serving``, ``_make_read_pipe_transport``,
``_make_write_pipe_transport``, ``_make_subprocess_transport``, ``_ensure_fd_no_transport``, ``_check_closed``,
``_check_running``, ``_add_reader``, ``_remove_reader``; ``_transports`` is replaced; of a ``WeakValueDictionary``
``data`` is read, the dict in it.  Of ``asyncio.Handle``: ``_run``, ``_cancelled``, ``_loop``, ``_callback``, ``_args``,
``_source_traceback``; the accelerator fills all slots of ``Handle`` and ``TimerHandle`` itself, overrides
``_call_soon`` and ``_timer_handle_cancelled`` of the loop, and is the home of the loop's ``_closed``.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import subprocess
import weakref
from asyncio import (
    base_events,
    base_subprocess,
    constants,
    events,
    format_helpers,
    futures,
    selector_events,
    sslproto,
    transports,
    trsock,
)
from collections.abc import Callable

__all__ = [
    "ACCEPT_RETRY_DELAY",
    "ATTACH_TAKES_TRANSPORT",
    "DATAGRAM_HEADER_BYTES",
    "LOG_THRESHOLD_FOR_CONNLOST_WRITES",
    "MAXIMUM_SELECT_TIMEOUT",
    "MIN_CANCELLED_TIMER_HANDLES_FRACTION",
    "MIN_SCHEDULED_TIMER_HANDLES",
    "SENDFILE_FALLBACK",
    "SENDFILE_TRY_NATIVE",
    "SENDS_EMPTY_DATAGRAMS",
    "SSL_HANDSHAKE_TIMEOUT",
    "SSL_READ_HIGH_WATER_KIB",
    "SSL_SHUTDOWN_TIMEOUT",
    "SSL_WRITE_HIGH_WATER_KIB",
    "BaseSubprocessTransport",
    "FlowControlMixin",
    "Popen",
    "SSLProtocol",
    "SelectorEventLoop",
    "TransportSocket",
    "execute_child_arguments",
    "format_callback_source",
    "openssl_error_queue_cleaner",
    "popen_waitpid_lock",
    "replace_new_event_loop",
    "server_attach",
    "server_detach",
    "server_forget",
    "server_holds_plainly",
    "set_result_unless_cancelled",
    "ssl_protocol",
    "stream_buffer",
    "weak_dict_of",
]

TYPE_CHECKING = False
if TYPE_CHECKING:
    import collections
    import socket
    from contextlib import AbstractContextManager
    from typing import Any, cast

    class BaseSubprocessTransport(asyncio.SubprocessTransport):
        """What mypy may know of the transport that asyncio's own one is made of."""

        _loop: Any
        _proc: Any
        _closed: bool
        _pipes: dict[int, Any]

        def __init__(
            self,
            loop: asyncio.AbstractEventLoop,
            protocol: asyncio.SubprocessProtocol,
            args: Any,
            shell: bool,
            stdin: Any,
            stdout: Any,
            stderr: Any,
            bufsize: int,
            waiter: asyncio.Future[None] | None = None,
            extra: dict[str, Any] | None = None,
            **kwargs: Any,
        ) -> None: ...
        async def _connect_pipes(self, waiter: asyncio.Future[None] | None) -> None: ...
        def _process_exited(self, returncode: int) -> None: ...

    class Popen(subprocess.Popen[bytes]):
        """What mypy may know of the inside of Popen."""

        pid: int
        returncode: int | None
        _child_created: bool
        _waitpid_lock: AbstractContextManager[Any]

        def _execute_child(self, *arguments: Any) -> None: ...
        def _try_wait(self, wait_flags: int) -> tuple[int, int]: ...
        def _close_pipe_fds(self, *descriptors: int) -> None: ...

    class FlowControlMixin(asyncio.Transport):
        """What mypy may know of asyncio's mixin: limits in bytes, and the pause protocol."""

        _loop: asyncio.AbstractEventLoop | None
        _extra: dict[str, Any]
        _protocol_paused: bool
        _high_water: int
        _low_water: int

        def __init__(
            self, extra: dict[str, Any] | None = None, loop: asyncio.AbstractEventLoop | None = None
        ) -> None: ...
        def _maybe_pause_protocol(self) -> None: ...
        def _maybe_resume_protocol(self) -> None: ...

    class SelectorEventLoop(asyncio.SelectorEventLoop):
        """What mypy may know of the inside of asyncio's loop; the list above says what it is."""

        _clock_resolution: float
        _csock: socket.socket
        _debug: bool
        _closed: bool
        _ready: collections.deque[asyncio.Handle]
        _scheduled: list[asyncio.TimerHandle]
        _signal_handlers: dict[int, asyncio.Handle]
        _stopping: bool
        _timer_cancelled_count: int
        _transports: Any

        def _run_once(self) -> None: ...
        def _check_closed(self) -> None: ...
        def _check_running(self) -> None: ...
        def _process_events(self, event_list: Any) -> None: ...
        def _stop_serving(self, sock: socket.socket) -> None: ...
        def _add_reader(self, fd: Any, callback: Any, *args: Any) -> asyncio.Handle: ...
        def _remove_reader(self, fd: Any) -> bool: ...
        def _make_datagram_transport(
            self, sock: Any, protocol: Any, address: Any = None, waiter: Any = None, extra: Any = None
        ) -> Any: ...
        def _make_self_pipe(self) -> None: ...
        def _close_self_pipe(self) -> None: ...

else:
    from asyncio import SelectorEventLoop
    from subprocess import Popen

    def cast(kind, value):
        """What ``typing.cast`` does."""
        return value

    BaseSubprocessTransport = base_subprocess.BaseSubprocessTransport
    FlowControlMixin = transports._FlowControlMixin

SENDFILE_TRY_NATIVE: Any = cast("Any", constants)._SendfileMode.TRY_NATIVE
SENDFILE_FALLBACK: Any = cast("Any", constants)._SendfileMode.FALLBACK
ACCEPT_RETRY_DELAY: float = constants.ACCEPT_RETRY_DELAY
LOG_THRESHOLD_FOR_CONNLOST_WRITES: int = constants.LOG_THRESHOLD_FOR_CONNLOST_WRITES
SSL_HANDSHAKE_TIMEOUT: float = constants.SSL_HANDSHAKE_TIMEOUT
SSL_SHUTDOWN_TIMEOUT: float = cast("Any", constants).SSL_SHUTDOWN_TIMEOUT
SSL_READ_HIGH_WATER_KIB: int = cast("Any", constants).FLOW_CONTROL_HIGH_WATER_SSL_READ
SSL_WRITE_HIGH_WATER_KIB: int = cast("Any", constants).FLOW_CONTROL_HIGH_WATER_SSL_WRITE
MAXIMUM_SELECT_TIMEOUT: float = cast("Any", base_events).MAXIMUM_SELECT_TIMEOUT
MIN_SCHEDULED_TIMER_HANDLES: int = cast("Any", base_events)._MIN_SCHEDULED_TIMER_HANDLES
MIN_CANCELLED_TIMER_HANDLES_FRACTION: float = cast("Any", base_events)._MIN_CANCELLED_TIMER_HANDLES_FRACTION
SSLProtocol: Any = sslproto.SSLProtocol
TransportSocket: Any = trsock.TransportSocket
set_result_unless_cancelled: Callable[[Any, Any], None] = cast("Any", futures)._set_result_unless_cancelled

_format_callback_source: Any = cast("Any", format_helpers)._format_callback_source
_FORMAT_ASKS_FOR_DEBUG = "debug" in inspect.signature(_format_callback_source).parameters


def format_callback_source(callback: Any, args: Any, debug: bool) -> str:
    """Return a callback and its arguments as asyncio writes them in its messages."""
    if _FORMAT_ASKS_FOR_DEBUG:
        return str(_format_callback_source(callback, args, debug=debug))
    return str(_format_callback_source(callback, args))


# 3.11's Server counts connections; from 3.12 on it is told which transport comes and goes.
ATTACH_TAKES_TRANSPORT = "transport" in inspect.signature(cast("Any", base_events.Server)._attach).parameters


def server_attach(server: Any, transport: Any) -> None:
    """Tell an ``asyncio.Server`` of a connection that it now has."""
    if ATTACH_TAKES_TRANSPORT:
        server._attach(transport)
    else:
        server._attach()


def server_holds_plainly(server: Any) -> None:
    """Let an ``asyncio.Server`` hold its connections by plain references, if it holds them by weak ones.

    asyncio does that so as not to keep abandoned transports from being collected.  Ours are kept by their handles until
    they are closed, and leave the server then: a weak reference takes 160 bytes and 2 us a connection for nothing.
    """
    clients = getattr(server, "_clients", None)
    if type(clients) is weakref.WeakSet and not clients:
        server._clients = set()


def server_forget(server: Any, transport: Any) -> None:
    """Take a transport that was abandoned from what :func:`server_holds_plainly` has made."""
    clients = getattr(server, "_clients", None)
    if type(clients) is set:
        clients.discard(transport)


def server_detach(server: Any, transport: Any) -> None:
    """Tell an ``asyncio.Server`` of a connection that is gone."""
    if ATTACH_TAKES_TRANSPORT:
        server._detach(transport)
    else:
        server._detach()


def ssl_protocol() -> Any:
    """Return asyncio's TLS layer, or what somebody has put in its place."""
    return sslproto.SSLProtocol


def openssl_error_queue_cleaner() -> Callable[[], object]:
    """Return what to call after a TLS error, before the next call into OpenSSL.

    PyPy's ssl leaves the errors of a failed handshake in OpenSSL's queue, one for the thread: the next read of
    another connection then fails with them.  CPython's empties it.
    """
    try:
        lib = importlib.import_module("_cffi_ssl._stdssl").lib
    except ImportError:
        return lambda: None
    cleaner: Callable[[], object] = lib.ERR_clear_error
    return cleaner


def stream_buffer(protocol: asyncio.StreamReaderProtocol) -> bytearray | None:
    """Return what the StreamReader of ``protocol`` holds, to be changed; None if the reader is gone."""
    reader = getattr(protocol, "_stream_reader", None)  # dropped by the user, held by a weak reference only
    return getattr(reader, "_buffer", None)


def replace_new_event_loop(factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """Make ``factory`` asyncio's ``new_event_loop()``, for its users and for asyncio's own runners."""
    asyncio.new_event_loop = events.new_event_loop = factory


_DatagramTransport: Any = cast("Any", selector_events)._SelectorDatagramTransport


def _sends_empty_datagrams() -> bool:
    # Asked of the transport itself, on a socket that only counts.
    class Counter:
        sent = 0

        def sendto(self, data: bytes, addr: Any) -> None:
            self.sent += 1

    counter = Counter()
    transport = _DatagramTransport.__new__(_DatagramTransport)
    transport._address, transport._conn_lost, transport._buffer = None, 0, ()
    transport._extra = {"peername": None}
    transport._sock = counter
    try:
        transport.sendto(b"", None)
    except AttributeError:
        return True  # a Python to come, whose transport asks for more: all since 3.13 send them
    finally:
        transport._sock = None  # its __del__ warns of an open one
    return counter.sent == 1


#: 3.11's and 3.12's datagram transports drop empty datagrams without a word.
SENDS_EMPTY_DATAGRAMS: bool = _sends_empty_datagrams()
#: What a datagram that waits counts besides its bytes, so that empty ones fill the buffer too; the first
#: releases of 3.13 add it as a literal, later ones have a name for it.
DATAGRAM_HEADER_BYTES: int = getattr(_DatagramTransport, "_header_size", 8 if SENDS_EMPTY_DATAGRAMS else 0)


# Popen.__init__ gives them in this order; a later Python may have one more.
_EXECUTE_CHILD = tuple(inspect.signature(Popen._execute_child).parameters)[1:]


def execute_child_arguments(arguments: tuple[Any, ...]) -> dict[str, Any]:
    """Return what ``Popen._execute_child`` was called with, by name."""
    return dict(zip(_EXECUTE_CHILD, arguments, strict=True))


def popen_waitpid_lock(popen: subprocess.Popen[Any]) -> AbstractContextManager[Any]:
    """Return the lock that a thread holds from before it reaps the child until ``returncode`` says so."""
    return cast("Any", popen)._waitpid_lock  # type: ignore[no-any-return]


def weak_dict_of(mapping: Any) -> dict[Any, Any]:
    """Return the dict in a ``WeakValueDictionary``, which is asked for a key in a fraction of the time."""
    found: dict[Any, Any] = mapping.data
    return found
