"""``connect_read_pipe`` and ``connect_write_pipe``: asyncio's own code ends here, with the user's file object."""

from __future__ import annotations

import asyncio
import os
import stat

from .._platform import tells_of_closed_reader
from ..transports.read_pipe import ReadPipeTransport
from ..transports.watch import Watches
from ..transports.write_pipe import WritePipeTransport

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["make_read_pipe_transport", "make_write_pipe_transport", "watches_of"]


def _look_at(pipe: Any) -> tuple[int, os.stat_result]:
    fd = pipe.fileno()
    status = os.fstat(fd)
    if not isinstance(fd, int):
        # A mock passes for the number 1 in C, and standard output would become the pipe.
        raise TypeError(f"'{type(fd).__name__}' object cannot be interpreted as an integer")
    return fd, status


def _check_kind(pipe: Any, status: os.stat_result, sentence: str) -> None:
    mode = status.st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or stat.S_ISCHR(mode)):
        raise ValueError(f"{sentence} Use a thread (asyncio.to_thread) for {pipe!r}.")


def watches_of(loop: Any) -> Watches:
    """Return the loop's table of watched descriptors, which is made for the first pipe."""
    if loop._watches is None:
        loop._watches = Watches(loop._core)
    watches: Watches = loop._watches
    return watches


def make_read_pipe_transport(
    loop: Any,
    pipe: Any,
    protocol: asyncio.BaseProtocol,
    waiter: asyncio.Future[None] | None = None,
    extra: dict[str, Any] | None = None,
) -> ReadPipeTransport:
    """Return a transport that receives from ``pipe``, a file object, and closes it in the end.

    Raises ValueError if it is no pipe, FIFO, socket or character device.
    """
    fd, status = _look_at(pipe)
    _check_kind(pipe, status, "Pipe transport is for pipes/sockets only.")
    os.set_blocking(fd, False)
    return ReadPipeTransport(loop, watches_of(loop), pipe, fd, protocol, waiter, extra)


def make_write_pipe_transport(
    loop: Any,
    pipe: Any,
    protocol: asyncio.BaseProtocol,
    waiter: asyncio.Future[None] | None = None,
    extra: dict[str, Any] | None = None,
) -> WritePipeTransport:
    """Return a transport that writes to ``pipe``, a file object, and closes it in the end.

    Raises ValueError if it is no pipe, FIFO, socket or character device.
    """
    fd, status = _look_at(pipe)
    _check_kind(pipe, status, "Pipe transport is only for pipes, sockets and character devices.")
    os.set_blocking(fd, False)
    return WritePipeTransport(
        loop, watches_of(loop), pipe, fd, protocol, waiter, extra, notices_end=tells_of_closed_reader(status)
    )
