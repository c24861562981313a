"""Policies, loops that are set, and child watchers: what of asyncio's past is still there.

In child processes, since a policy is the whole process's. Python 3.14 deprecates policies and has no child watchers;
3.16 has neither.
"""

from __future__ import annotations

import asyncio
import sys
import warnings

import pytest
from support import run_child


def exists(name: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return hasattr(asyncio, name)


pytestmark = pytest.mark.skipif(not exists("get_event_loop_policy"), reason="this Python has no policies")
needs_watchers = pytest.mark.skipif(not exists("AbstractChildWatcher"), reason="this Python has no child watchers")


def succeeds(code: str, loop_name: str, *flags: str) -> None:
    done = run_child(code, loop_name, *flags)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


def test_a_policy_makes_and_keeps_a_loop_for_each_thread(loop_name: str) -> None:
    succeeds(
        """
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)

        class Policy(asyncio.DefaultEventLoopPolicy):
            _loop_factory = staticmethod(new_child_loop)

        policy = Policy()
        asyncio.set_event_loop_policy(policy)
        assert asyncio.get_event_loop_policy() is policy
        assert isinstance(policy, asyncio.AbstractEventLoopPolicy)
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        assert asyncio.get_event_loop() is policy.get_event_loop() is loop
        seen = []

        def elsewhere():
            try:
                asyncio.get_event_loop()
            except RuntimeError as error:
                seen.append(str(error))
            own = policy.new_event_loop()
            policy.set_event_loop(own)
            seen.append(asyncio.get_event_loop() is own)
            policy.set_event_loop(None)
            own.close()

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert "no current event loop" in seen[0] and seen[1] is True
        assert asyncio.get_event_loop() is loop
        loop.close()
        asyncio.set_event_loop(None)
        for wrong in lambda: asyncio.set_event_loop_policy(7), lambda: policy.set_event_loop(7):
            try:
                wrong()
            except (TypeError, AssertionError):
                pass
            else:
                raise AssertionError("it was taken")
        """,
        loop_name,
    )


@pytest.mark.ours("the package's own interface")
def test_install_serves_run_and_new_event_loop(loop_name: str) -> None:
    succeeds(
        """
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        import velociloop
        velociloop.install()

        async def main():
            process = await asyncio.create_subprocess_exec("true")
            assert await process.wait() == 0
            return type(asyncio.get_running_loop())

        assert asyncio.run(main()) is velociloop.Loop
        loop = asyncio.new_event_loop()
        assert type(loop) is velociloop.Loop
        loop.close()
        asyncio.set_event_loop_policy(velociloop.EventLoopPolicy())
        assert asyncio.run(main()) is velociloop.Loop
        """,
        loop_name,
    )


@pytest.mark.ours("the package's own interface")
@pytest.mark.skipif(sys.version_info < (3, 14), reason="policies are deprecated from Python 3.14 on")
@pytest.mark.parametrize("call", ["install()", "EventLoopPolicy()"])
def test_who_asks_for_a_policy_is_warned(loop_name: str, call: str) -> None:
    succeeds(
        f"""
        import warnings, velociloop
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            velociloop.{call}
        assert caught and all(warning.category is DeprecationWarning for warning in caught), caught
        """,
        loop_name,
        "-W",
        "error",
    )


@needs_watchers
@pytest.mark.parametrize(
    "watcher",
    ["SafeChildWatcher", "FastChildWatcher", "MultiLoopChildWatcher", "ThreadedChildWatcher", "PidfdChildWatcher"],
)
def test_a_child_watcher_reports_a_childs_end(loop_name: str, watcher: str) -> None:
    """Used by itself, as old programs do: with signals, threads and pidfds, all on this loop."""
    if watcher == "PidfdChildWatcher" and sys.implementation.name == "pypy":
        pytest.skip("PyPy has no os.pidfd_open")
    succeeds(
        f"""
        import subprocess, warnings
        warnings.simplefilter("ignore", DeprecationWarning)

        async def main():
            loop = asyncio.get_running_loop()
            watcher = asyncio.{watcher}()
            assert isinstance(watcher, asyncio.AbstractChildWatcher)
            watcher.attach_loop(loop)
            assert watcher.is_active()
            ended = loop.create_future()

            def report(pid, status, *arguments):
                loop.call_soon_threadsafe(ended.set_result, (pid, status, *arguments))

            with watcher:
                pid = os.posix_spawn("/bin/sh", ["sh", "-c", "exit 7"], os.environ)
                watcher.add_child_handler(pid, report, "argument")
                assert await in_time(ended) == (pid, 7, "argument")
                # Whether there was one to remove, or that there never is: not the same in each watcher and version.
                assert watcher.remove_child_handler(pid) in (True, False)
            watcher.close()

        if not hasattr(os, "posix_spawn"):
            os.posix_spawn = lambda path, arguments, environment: subprocess.Popen([path, *arguments[1:]]).pid
        with asyncio.Runner(loop_factory=new_child_loop) as runner:
            runner.run(main())
        """,
        loop_name,
    )


@needs_watchers
def test_the_policys_child_watcher(loop_name: str) -> None:
    """One that is set is kept, and does not keep subprocesses of the loop from ending."""
    succeeds(
        """
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        watcher = asyncio.ThreadedChildWatcher()
        asyncio.set_child_watcher(watcher)
        assert asyncio.get_child_watcher() is watcher
        assert asyncio.get_event_loop_policy().get_child_watcher() is watcher

        async def main():
            process = await asyncio.create_subprocess_exec("sh", "-c", "exit 7")
            assert await in_time(process.wait()) == 7

        with asyncio.Runner(loop_factory=new_child_loop) as runner:
            runner.run(main())
        asyncio.get_event_loop_policy().set_child_watcher(None)
        """,
        loop_name,
    )
