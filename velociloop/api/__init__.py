"""One file per family of asyncio's API that velociloop overrides."""
