"""The site's configuration; what is particular to this workspace is in ``offprints_site``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

SOURCE = Path(__file__).resolve().parent
ROOT = SOURCE.parent
sys.path.insert(0, str(SOURCE))

from offprints_site.docstrings import connect  # noqa: E402
from offprints_site.inventories import inventories  # noqa: E402
from offprints_site.members import read_papers  # noqa: E402
from offprints_site.pages import REPOSITORY, write_all  # noqa: E402

# Before anything else: the gallery wants its stage when it is set up.
write_all(ROOT, SOURCE)

project = "offprints"
author = "The offprints authors"
copyright = "The offprints authors, Apache-2.0"
language = "en"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.intersphinx",
    "sphinx.ext.viewcode",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["offprints_site", "generated", "examples", "**/GALLERY_HEADER.rst"]
suppress_warnings = ["config.cache"]  # the gallery's settings hold functions
default_role = "py:obj"  # one backtick: a link where the name is known, code where it is not
nitpicky = False
templates_path: list[str] = []

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "attrs_inline", "attrs_block"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
python_display_short_literal_types = True
add_module_names = False
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_preprocess_types = False

intersphinx_mapping = inventories(ROOT / ".nox" / "inventories")
intersphinx_disabled_reftypes = ["std:doc"]

sphinx_gallery_conf = {
    "examples_dirs": "examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"plot_",
    "plot_gallery": os.environ.get("OFFPRINTS_DOCS_GALLERY", "1") != "0",
    "thumbnail_size": (640, 420),
    "remove_config_comments": True,
    "download_all_examples": False,
    "write_computation_times": False,
    "show_memory": False,
    "min_reported_time": 1,
    "doc_module": ("offprints",),
    "reference_url": {"offprints": None},
    "backreferences_dir": None,
}

html_theme = "pydata_sphinx_theme"
html_title = "offprints"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    **({"github_url": REPOSITORY} if REPOSITORY else {}),
    "navigation_with_keys": False,
    "show_prev_next": False,
    "header_links_before_dropdown": 6,
    "footer_start": ["copyright"],
    "footer_end": [],
    "secondary_sidebar_items": {"**": ["page-toc"], "index": []},
    "pygments_light_style": "tango",
    "pygments_dark_style": "github-dark",
}
html_sidebars = {"index": [], "claims": [], "papers/index": []}

PAPERS = read_papers(ROOT)


def setup(app: object) -> None:
    """Let docstrings be read as this workspace writes them."""
    connect(app)
