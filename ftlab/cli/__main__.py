"""`python -m ftlab.cli`, where the command `ftlab` is not on the path."""

from ftlab.cli import main

main()
