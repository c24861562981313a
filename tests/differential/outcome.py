"""What is compared of two runs of one scenario, and what is left out because no rule determines it.

Left out, always:

- how received bytes are cut into data_received() or buffer_updated() calls, and how often get_buffer() is
  called: a stream has no boundaries. Compared is that every byte comes once, in order, and before the end
  of the stream; `Run.violations` notes what does not.
- how often pause_writing() and resume_writing() are called: it depends on how much the kernel takes at
  once. Both runs must alternate them, and end resumed where everything has been read. Where a protocol
  reacts to them, the scenario makes them certain (`scenarios`).
- the order of callbacks of *different* ends: it is the kernel's.
- what is_closing() and is_reading() say after an operation on a connection whose other end has gone:
  velociloop may notice the failed write only when the callback ends (docs/differences.md).
- what asyncio words otherwise in other releases (`in_one_wording`).
- a handler's repr in "Exception in callback ...", and the addresses' port numbers.

Left out of a run that is `weak`, which the operations decide and not the run's luck: everything but the
invariants, the bytes that came (a prefix of those sent) and the kind of error. Weak is a run in which an
end closes while bytes are on their way to it, or more than the kernel surely holds is on its way from it:
TCP then resets the connection, and what the reset overtakes is lost.
"""

from __future__ import annotations

import dataclasses
from typing import Any

#: With what an unlucky connection may end.
RAISED = "Raised"
WEAK_ENDS = frozenset({"None", "ConnectionResetError", "BrokenPipeError", RAISED})


def in_one_wording(message: str) -> str:
    """An error's message, with one word for what asyncio's releases word differently."""
    # 3.11's writelines() is a write(), in its errors too.
    message = message.replace("writelines()", "write()")
    # 3.14 lists the types that it takes, in maintenance releases.
    return message.replace("a bytes, bytearray, or memoryview object", "a bytes-like object")


@dataclasses.dataclass
class EndRun:
    """What one end saw."""

    #: Results and exceptions of the calls of the transport's methods, in order.
    calls: list[Any] = dataclasses.field(default_factory=list)
    #: made, eof, lost and the steps between them, in order.
    callbacks: list[Any] = dataclasses.field(default_factory=list)
    #: For each mark: whether connection_lost() had come before it.
    marks: list[Any] = dataclasses.field(default_factory=list)
    #: What the loop's exception handler was told about this end.
    reports: list[Any] = dataclasses.field(default_factory=list)
    #: How connection_lost() ended it; None if that never came.
    lost: str | None = None
    #: Whether all that the other end's transport took has come.
    complete: bool | None = None
    #: The state after connection_lost(), by what was asked.
    final: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Run:
    """What came of a scenario on one loop."""

    client: EndRun
    server: EndRun
    weak: bool = False
    #: Warnings that asyncio's logger was given; None where asyncio has lost count of what it warns of.
    warnings: list[str] | None = None
    #: Rules broken, whichever loop it is. Nothing excuses them.
    violations: list[str] = dataclasses.field(default_factory=list)


def differences(ours: Run, oracle: Run) -> list[str]:
    """In what two runs of the same scenario differ; empty if in nothing that counts."""
    found = [f"ours: {text}" for text in ours.violations] + [f"oracle: {text}" for text in oracle.violations]
    if ours.weak or oracle.weak:
        for name, run in (("ours", ours), ("oracle", oracle)):
            for end in (run.client, run.server):
                if end.lost is not None and end.lost not in WEAK_ENDS:
                    found.append(f"{name}: connection_lost({end.lost})")
        return found
    if ours == oracle:
        return found
    for where in ("client", "server"):
        for field in dataclasses.fields(EndRun):
            mine, other = getattr(getattr(ours, where), field.name), getattr(getattr(oracle, where), field.name)
            if mine != other:
                found.append(f"{where}'s {field.name}:\n    ours   {mine}\n    oracle {other}")
    if ours.warnings is not None and oracle.warnings is not None and ours.warnings != oracle.warnings:
        found.append(f"warnings: ours {ours.warnings}, oracle {oracle.warnings}")
    return found
