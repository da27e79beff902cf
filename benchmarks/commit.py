"""The commit that a benchmark's figures are of."""

from __future__ import annotations

import subprocess
from pathlib import Path


def commit_here() -> str:
    """Short name of what is checked out. CalledProcessError: this is no repository."""
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
