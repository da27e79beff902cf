"""What the command `exactile` and `python -m exactile` call; the tools are in `exactile.tools`."""

from exactile.tools.cli import main

__all__ = ["main"]
