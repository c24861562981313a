"""Runs a program and shows each line of its output as it comes, with the time.

    python examples/subprocess_lines.py                       (a program of its own)
    python examples/subprocess_lines.py -- ping -c 3 127.0.0.1

Ctrl-C ends the program too.  The exit status is the program's.
"""

import argparse
import asyncio
import sys
import time
from asyncio.subprocess import PIPE, Process

import velociloop

COUNT = """
import sys, time
for number in range(3):
    print("line", number, flush=True)
    time.sleep(0.1)
print("to stderr", file=sys.stderr)
"""


async def show(name: str, reader: asyncio.StreamReader, start: float) -> None:
    """Print every line of one of the program's streams."""
    async for line in reader:
        print(f"{time.monotonic() - start:6.2f} s  {name}: {line.decode(errors='replace').rstrip()}", flush=True)


async def follow(process: Process) -> int:
    start = time.monotonic()
    assert process.stdout is not None  # both are pipes
    assert process.stderr is not None
    async with asyncio.TaskGroup() as group:
        group.create_task(show("out", process.stdout, start))
        group.create_task(show("err", process.stderr, start))
    return await process.wait()


async def main(command: list[str]) -> int:
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE)
    print(f"started process {process.pid}", flush=True)
    try:
        status = await follow(process)
    finally:
        if process.returncode is None:  # Ctrl-C has cancelled us
            process.terminate()
            await process.communicate()
    print(f"ended with status {status}", flush=True)
    return status


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="shows a program's lines as they come")
    parser.add_argument("command", nargs="*", default=[sys.executable, "-c", COUNT], help="program and arguments")
    try:
        status = velociloop.run(main(parser.parse_args().command))
    except KeyboardInterrupt:
        print("stopped")
    else:
        sys.exit(status if status >= 0 else 128 - status)  # as a shell says that a signal ended it
