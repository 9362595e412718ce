"""The command line ``offprints``: list, info, run. Nothing heavy is imported before it is needed."""
