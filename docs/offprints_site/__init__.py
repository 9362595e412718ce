"""A Sphinx extension that draws the site from the workspace: a paper that is added needs no edit in ``docs/``.

``members`` reads what there is, ``api`` lists the public objects of a package, ``claims`` the recorded claims;
``pages`` writes the pages that are made of them; ``docstrings`` and ``inventories`` serve autodoc and intersphinx.
"""
