"""Sphinx: `sphinx-build -W docs build/docs` makes these pages, a warning being an error."""

project = "raymu"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
myst_heading_anchors = 3
nb_execution_mode = "off"  # the notebook's outputs are stored in it
napoleon_use_ivar = True  # else what a class lists and what it declares are described twice
