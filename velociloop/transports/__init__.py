"""asyncio's transports over the shim's handles.  They know keys and numbers, and no C."""
