"""What a connection's two ends do: scenarios, and how hypothesis makes them.

A scenario is a list of steps. A step is what one end does within one callback; between two steps the
player lets the connection settle, or not (`Step.settle`). An end besides reacts within its protocol's
callbacks (`Reaction`).
"""

from __future__ import annotations

import dataclasses

from hypothesis import strategies as st

#: Written and not read yet: so much the kernel's buffers take on any loopback connection, whoever looks.
CERTAINLY_BUFFERED_BYTES = 4096
MAX_WRITE_BYTES = 1 << 20

WRITES = frozenset({"write", "writelines", "fill"})
#: What ends a connection, or one direction of it.
ENDINGS = frozenset({"close", "abort", "raise", "write_eof"})


@dataclasses.dataclass(frozen=True)
class Op:
    """One call of a transport's method.

    ============ ==========================================================================
    write        `sizes[0]` bytes, as an object of the type `text`
    writelines   `sizes` bytes
    fill         write until the transport says pause_writing()
    bad_write    an object of the type `text`, which is not bytes-like
    limits       set_write_buffer_limits(high=sizes[0], low=sizes[1]), as far as given
    protocol     set_protocol(): an object of the kind `text` takes over
    mark         loop.call_soon(): shows what a call_soon() of the transport is before or behind
    ask          every method that only informs
    raise        raise an exception out of the callback (reactions only)
    others       the method of that name, without arguments
    ============ ==========================================================================
    """

    name: str
    sizes: tuple[int, ...] = ()
    text: str = ""

    def __repr__(self) -> str:
        arguments = [*map(str, self.sizes), *([self.text] if self.text else [])]
        return f"{self.name}({', '.join(arguments)})"


@dataclasses.dataclass(frozen=True)
class Step:
    """What end number `end` does in one callback."""

    end: int
    ops: tuple[Op, ...]
    settle: bool


@dataclasses.dataclass(frozen=True)
class Reaction:
    """What a protocol does in its callback `when`, once; for "data" when `after_bytes` have come in all."""

    when: str
    ops: tuple[Op, ...]
    after_bytes: int = 0


@dataclasses.dataclass(frozen=True)
class EndSpec:
    """A protocol: its kind, what eof_received() returns, how it reads, how it reacts."""

    kind: str  # "protocol", "buffered"
    buffer_bytes: int  # what get_buffer() offers
    keep_open: bool
    slow_turns: int  # after each delivery it pauses reading for so many turns of the loop
    reactions: tuple[Reaction, ...]


@dataclasses.dataclass(frozen=True)
class Scenario:
    """All that happens on one connection; end 0 is the client, end 1 the server."""

    transport: str  # "tcp", "unix", or "pair": a socket pair by sock= and connect_accepted_socket()
    ends: tuple[EndSpec, EndSpec]
    steps: tuple[Step, ...]
    #: How the connection ends if no step has ended it.
    last: tuple[Step, ...]
    #: Never let it settle: the outcome then depends on the kernel's timing, and less is compared.
    hasty: bool


SIZES = st.sampled_from([0, 1, 2, 100, 1000, 4096, 4097, 16384, 65535, 65536, 65537, 262144, MAX_WRITE_BYTES])
SMALL_SIZES = st.sampled_from([0, 1, 2, 100, 1000])


def writes(sizes: st.SearchStrategy[int]) -> st.SearchStrategy[Op]:
    # An empty piece stays in the buffer of asyncio 3.12's and 3.13's writelines() for ever, and spins.
    pieces = st.lists(sizes.filter(bool), min_size=1, max_size=4)
    return st.one_of(
        st.builds(
            lambda size, kind: Op("write", (size,), kind), sizes, st.sampled_from(["bytes", "bytearray", "memoryview"])
        ),
        st.builds(lambda found: Op("writelines", tuple(found)), pieces),
    )


QUESTIONS = st.sampled_from(
    [
        Op("ask"),
        Op("mark"),
        Op("bad_write", text="str"),
        Op("bad_write", text="int"),
        Op("bad_write", text="NoneType"),
        Op("bad_write", text="list"),
    ]
)
LIMITS = st.sampled_from([(), (0,), (1,), (1000,), (100000,), (5, 2), (2, 5), (1 << 20, 0), (-1,)]).map(
    lambda sizes: Op("limits", sizes)
)
PROTOCOLS = st.sampled_from([Op("protocol", text="protocol"), Op("protocol", text="buffered")])
READING = st.sampled_from([Op("pause_reading"), Op("resume_reading")])
ENDING = st.sampled_from([Op("write_eof"), Op("write_eof"), Op("close"), Op("abort")])


@st.composite
def scenarios(draw: st.DrawFn) -> Scenario:
    # Whether pause_writing() and resume_writing() come at all must not be the kernel's choice
    # where the protocol reacts to them: "fill" makes sure of it, small writes leave it alone.
    reacts_to_pauses = draw(st.sampled_from([False] * 5 + [True]))
    sizes = SMALL_SIZES if reacts_to_pauses else st.one_of(SMALL_SIZES, SIZES)
    benign = [writes(sizes), writes(sizes), READING, QUESTIONS, PROTOCOLS]
    benign.append(st.just(Op("fill")))
    if not reacts_to_pauses:
        benign.append(LIMITS)
    harmless = st.one_of(benign)
    op = st.one_of(harmless, harmless, harmless, ENDING)
    reaction_ops = st.lists(op, min_size=1, max_size=3)
    raising = st.lists(op, max_size=1).map(lambda ops: [*ops, Op("raise")])

    def reactions(when: str) -> st.SearchStrategy[Reaction]:
        # asyncio goes on after connection_made() has raised, velociloop closes: docs/differences.md.
        found = reaction_ops if when == "made" else st.one_of(reaction_ops, reaction_ops, raising)
        if when == "resume":
            # asyncio's transport loses its connection twice if resume_writing() closes it.
            found = found.map(lambda ops: [op for op in ops if op.name == "raise" or op.name not in ENDINGS])
        if when == "lost":
            # After a close() that had to wait, asyncio still sends what connection_lost() writes, and loses the
            # connection once more if that aborts it.
            found = found.map(lambda ops: [op for op in ops if op.name not in WRITES | {"abort"}])
        after = st.one_of(st.just(1), sizes) if when == "data" else st.just(0)
        return st.builds(lambda ops, count: Reaction(when, tuple(ops), count), found, after)

    def end() -> EndSpec:
        occasions = ["made", "data", "data", "eof", "lost"] + (["pause", "resume"] if reacts_to_pauses else [])
        chosen = draw(st.lists(st.sampled_from(occasions), max_size=2, unique_by=lambda name: name))
        return EndSpec(
            kind=draw(st.sampled_from(["protocol", "protocol", "buffered"])),
            buffer_bytes=draw(st.sampled_from([1000, 65536, 300000])),
            keep_open=draw(st.booleans()),
            slow_turns=draw(st.sampled_from([0, 0, 1, 3])),
            reactions=tuple(draw(reactions(when)) for when in chosen),
        )

    step = st.builds(
        lambda number, ops, settle: Step(number, tuple(ops), settle),
        st.integers(0, 1),
        st.lists(op, min_size=1, max_size=5),
        st.sampled_from([True, True, False]),
    )
    ending = st.builds(lambda number, found: Step(number, (found,), settle=True), st.integers(0, 1), ENDING)
    return Scenario(
        transport=draw(st.sampled_from(["tcp", "unix", "pair"])),
        ends=(end(), end()),
        steps=tuple(draw(st.lists(step, max_size=8))),
        last=tuple(draw(st.lists(ending, max_size=2))),
        hasty=draw(st.sampled_from([False] * 9 + [True])),
    )
