"""Used by every other package: asyncio's bridge, files, text, logging, signals, and the notify socket."""
