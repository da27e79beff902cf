"""Entry point of `exactile` and `python -m exactile`; the tools are in `exactile.tools`."""

from exactile.tools.cli import main

__all__ = ["main"]
