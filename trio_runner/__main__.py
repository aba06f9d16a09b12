"""`python -m trio_runner` is the command `trio-runner`."""

from __future__ import annotations

import sys

from trio_runner.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
