"""The states of a stream or pipe transport, each an enum with its transitions.

Three things change independently: the connection as a whole, what is read, and what is written.
"""

import enum

__all__ = ["Cork", "Phase", "Reading", "Sending"]


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
