"""Inventories of other projects for intersphinx, fetched where the network allows it.

A build must neither fail nor warn where it is closed: what cannot be had is left out, and its names stay without links.
``OFFPRINTS_DOCS_OFFLINE=1`` does not ask at all. Inventories are kept for later builds.
"""

from __future__ import annotations

import os
import urllib.request
from pathlib import Path

PROJECTS = {
    "python": "https://docs.python.org/3/",
    "torch": "https://docs.pytorch.org/docs/stable/",
    "numpy": "https://numpy.org/doc/stable/",
    "sklearn": "https://scikit-learn.org/stable/",
    "diffusers": "https://huggingface.co/docs/diffusers/main/en/",
}
SECONDS = 5.0


def inventories(cache: Path, projects: dict[str, str] = PROJECTS) -> dict[str, tuple[str, str]]:
    """The projects whose inventory is at hand, as `intersphinx_mapping` takes them."""
    asking = os.environ.get("OFFPRINTS_DOCS_OFFLINE", "") in ("", "0")
    found = {}
    for name, url in projects.items():
        path = cache / f"{name}.inv"
        if asking and not path.exists():
            try:
                with urllib.request.urlopen(f"{url}objects.inv", timeout=SECONDS) as answer:
                    content = answer.read()
            except OSError as error:
                # A project without an inventory answers 404; everything else is a network that will not answer either.
                asking = getattr(error, "code", None) is not None
                continue
            if not content.startswith(b"# Sphinx inventory version 2"):
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        if path.exists():
            found[name] = (url, str(path))
    return found
