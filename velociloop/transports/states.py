"""The states of a transport, each an enum with its transitions.

Of a stream or pipe, three things change independently: the connection as a whole, what is read, and what is
written.  Of TLS two: the connection, and what its protocol has been told.
"""

import enum

__all__ = ["Cork", "Phase", "Reading", "Sending", "TlsState", "Told"]


class Phase(enum.Enum):
    """The connection.

    ::

        OPEN --close()--> CLOSING --all bytes sent; abort(); error--> LOST --connection_lost()--> CLOSED
          |                                                             ^
          +--close(), nothing to send; abort(); error; a pipe's end-----+

    CLOSING: what was written before ``close()`` is still being sent; nothing is read.
    LOST: ``connection_lost`` is scheduled.  CLOSED: it was called, the descriptor is closed.
    """

    OPEN = "open"
    CLOSING = "closing"
    LOST = "lost"
    CLOSED = "closed"


class Reading(enum.Enum):
    """The receiving direction.

    ::

        IDLE --connection_made() has returned; resume_reading()--> ACTIVE --end of stream--> ENDED
         ^                                                           |                         |
         +--pause_reading(); the phase leaves OPEN-------------------+                         |
         +--the phase leaves OPEN--------------------------------------------------------------+

    ACTIVE: libuv reads.  Whether the user has paused is another matter: an ended stream can be paused too.
    IDLE for good once the phase has left OPEN.
    """

    IDLE = "idle"
    ACTIVE = "active"
    ENDED = "ended"


class Sending(enum.Enum):
    """The sending direction.

    ::

        OPEN --write_eof()--> ENDING --all bytes sent, shutdown(2)--> ENDED
    """

    OPEN = "open"
    ENDING = "ending"
    ENDED = "ended"


class Cork(enum.Enum):
    """Whether a write waits for the end of the callback that wrote (DESIGN, "Write").

    ::

        OUT --a second write in one callback--> IN --CALM_CALLBACKS callbacks with one write--> OUT

    OUT: the first write of a callback goes to the kernel at once, so a program that writes and
    then blocks is heard.  IN: all writes of a callback leave together when it ends.
    """

    OUT = "out"
    IN = "in"


class TlsState(enum.Enum):
    """A TLS connection, in the words of asyncio's.

    ::

        UNWRAPPED --connection_made()--> DO_HANDSHAKE --agreed, verified--> WRAPPED
                                                                              |
                    close(); the peer's close_notify; the end of the stream --+
                                                                              v
        UNWRAPPED <--connection_lost()-- SHUTDOWN <--all that came is delivered-- FLUSHING

        any --abort(); an error; connection_lost()--> UNWRAPPED

    FLUSHING: nothing is written any more; what had come before is delivered, when reading is resumed if it is
    paused.  SHUTDOWN: close_notify was sent, or the stream has ended; the peer's is waited for, then the
    transport below is closed.  Only WRAPPED and FLUSHING read, only WRAPPED writes.
    """

    UNWRAPPED = "unwrapped"
    DO_HANDSHAKE = "handshake"
    WRAPPED = "wrapped"
    FLUSHING = "flushing"
    SHUTDOWN = "shutdown"


class Told(enum.Enum):
    """What the protocol above TLS was called with.

    ::

        NOTHING --connection_made()--> MADE --eof_received()--> EOF --connection_lost()--> LOST
                                        +------------connection_lost()----------------------^

    start_tls() begins with MADE: its protocol has been connected before.
    """

    NOTHING = "nothing"
    MADE = "made"
    EOF = "eof"
    LOST = "lost"
