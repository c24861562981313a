"""Three ways to put an asyncio program on velociloop; main() is the same in each.

    python examples/policy_switch.py

The third, the event loop policy, is how uvloop is often switched on. It is there for programs that call
asyncio.run() where you cannot change it; Python 3.14 deprecates policies and 3.16 removes them.
"""

import asyncio

import velociloop


async def main(way: str) -> None:
    await asyncio.sleep(0.1)
    loop = asyncio.get_running_loop()
    print(f"{way:55} main() ran on {type(loop).__module__.partition('.')[0]}", flush=True)


def switch() -> None:
    # 1. In place of asyncio.run().
    velociloop.run(main("velociloop.run(main())"))

    # 2. A Runner: several calls on one loop. From Python 3.12 on, asyncio.run() takes loop_factory= as well.
    with asyncio.Runner(loop_factory=velociloop.new_event_loop) as runner:
        runner.run(main("asyncio.Runner(loop_factory=velociloop.new_event_loop)"))

    # 3. The policy: one line, and every later asyncio.run() in this process is on velociloop.
    if hasattr(asyncio, "set_event_loop_policy"):
        velociloop.install()
        asyncio.run(main("velociloop.install()"))
        asyncio.set_event_loop_policy(None)  # back to the standard library's
        asyncio.run(main("asyncio.set_event_loop_policy(None)"))


if __name__ == "__main__":
    print(f"velociloop {velociloop.__version__}, libuv {velociloop.libuv_version()}")
    try:
        switch()
    except KeyboardInterrupt:
        print("stopped")
