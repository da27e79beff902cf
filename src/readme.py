"""Build step: the description of the distribution, for pyproject.toml.

README.md as a package index can show it: links and pictures that lead into the source tree lead
nowhere there, so pictures go and of links the text stays.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_IN_TREE = r"\((?!https?://|#)[^)\s]+\)"


def for_an_index(text: str) -> str:
    """Markdown without pictures and links of the source tree."""
    text = re.sub(rf"^!\[[^]]*\]{_IN_TREE}\n+", "", text, flags=re.MULTILINE)
    text = re.sub(rf"!\[[^]]*\]{_IN_TREE}", "", text)
    return re.sub(rf"\[([^]]*)\]{_IN_TREE}", r"\1", text)


def dynamic_metadata(
    settings: Mapping[str, Any], project: Mapping[str, Any]
) -> dict[str, dict[str, str]]:
    """What scikit-build-core adds to [project]."""
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    return {"readme": {"content-type": "text/markdown", "text": for_an_index(text)}}
