"""`python -m ftlab` is the command `ftlab`, also for launchers."""

from __future__ import annotations

from ftlab.cli import main

if __name__ == "__main__":
    main()
