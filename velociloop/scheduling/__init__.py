"""When things run: the turn, the dispatch of completions, what happens when a callback ends.

asyncio's order is kept: [already ready] [I/O of this poll] [due timers].
"""
