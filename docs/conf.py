"""Sphinx configuration: `make docs` builds the pages with warnings as errors."""

project = "tracelab"
author = "The tracelab developers"
extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "numpydoc",
    "myst_parser",
]
exclude_patterns = ["_build"]
html_theme = "alabaster"
html_theme_options = {"description": "What gradient noise is, measured", "fixed_sidebar": True}
myst_enable_extensions = ["dollarmath"]
numpydoc_show_class_members = False
# Links to GitHub-style relative files of the README do not exist in the built pages.
suppress_warnings = ["myst.xref_missing"]
