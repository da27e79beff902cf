"""Sphinx: the documentation. `python -m sphinx -W --keep-going docs build/docs` builds it."""

import exactile

project = "exactile"
copyright = "the authors of exactile"
version = release = exactile.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say them, with shapes and units
napoleon_google_docstring = False
napoleon_use_param = napoleon_use_rtype = False

default_role = "code"

html_theme = "furo"
html_title = f"exactile {version}"
