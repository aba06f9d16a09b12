"""What every other package leans on: asyncio's bridge, files, text, logging, signals, and the notify socket."""
