"""The core that the papers' packages stand on. Nothing is imported here: each module is imported by its own name."""
