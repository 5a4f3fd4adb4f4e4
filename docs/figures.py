"""Pictures in tutorials that were drawn without pyplot, as this package draws them."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure
from sphinx_gallery.scrapers import figure_rst


def scrape(block: Any, block_vars: dict[str, Any], gallery_conf: dict[str, Any]) -> str:
    """Show what a cell has put into ``figure``; pyplot's own figures have a scraper already."""
    figure = block_vars["example_globals"].get("figure")
    if not isinstance(figure, Figure) or figure.canvas.manager or hasattr(figure, "is_shown"):
        return ""
    figure.is_shown = True
    path = next(block_vars["image_path_iterator"])
    figure.savefig(path, dpi=150)
    return figure_rst([path], gallery_conf["src_dir"])
