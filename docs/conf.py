"""How Sphinx builds this site: `make docs`."""

import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS))

from names import ROOMS
from sphinx_gallery.sorting import ExplicitOrder

import torchrl_metra

project = "torchrl_metra"
author = "The torchrl_metra developers"
project_copyright = f"2026, {author}"
version = release = torchrl_metra.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "names",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "tutorials/*.rst", "tutorials/README*"]
# A name that leads nowhere is an error, as every warning is.
nitpicky = True

# Pages
myst_enable_extensions = ["attrs_inline", "colon_fence", "dollarmath"]
myst_heading_anchors = 4
copybutton_prompt_text = "$ "

# Reference: what the docstrings say, once; types stand there too.
autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
napoleon_use_rtype = False

# Inventories of other projects are kept here, as plain text, with the names that this site links
# to: it can be built without a network, and always gives the same links.
intersphinx_mapping = {
    "python": ("https://docs.python.org/3/", "inventories/python.txt"),
    "torch": ("https://docs.pytorch.org/docs/stable/", "inventories/torch.txt"),
    "torchrl": ("https://docs.pytorch.org/rl/stable/", "inventories/torchrl.txt"),
    "tensordict": ("https://docs.pytorch.org/tensordict/stable/", "inventories/tensordict.txt"),
}
# What has no page, and words that docstrings use for types.
nitpick_ignore_regex = [
    ("py:class", r"optional|array|path|sequence|mapping|collection|callable|.* to .*"),
    (
        "py:.*",
        r"(.*\.)?(OptimizationStepper|SoftUpdate|TargetNetUpdater|EpisodePrimer|make_fx|register_op)",
    ),
    # Bases that users need not know.
    ("py:class", r"torchrl_metra\._private\..*|torchrl_metra\.recipes\.settings\.TaskSettings"),
    ("py:.*", r"hydra\..*|mujoco\..*|ConfigCompositionException|NestedKey"),
]

# Tutorials: run by the build.
sphinx_gallery_conf = {
    "examples_dirs": "tutorials",
    "gallery_dirs": "auto_tutorials",
    "filename_pattern": r"\.py",
    "within_subsection_order": ExplicitOrder(
        ["first_skills.py", "your_robot.py", "reaching_goals.py", "skills_as_actions.py"]
    ),
    "abort_on_example_error": True,
    "download_all_examples": False,
    "min_reported_time": 1e9,
    "write_computation_times": False,
    "remove_config_comments": True,
    "capture_repr": (),
    "image_scrapers": ("figures.scrape", "matplotlib"),
    "doc_module": tuple(ROOMS),
}

# Look
html_theme = "furo"
html_title = f"torchrl_metra {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_logo = "_static/logo.svg"
html_favicon = "_static/logo.svg"
html_copy_source = False
html_show_sourcelink = False
pygments_style = "default"
pygments_dark_style = "github-dark"

linkcheck_anchors = False
