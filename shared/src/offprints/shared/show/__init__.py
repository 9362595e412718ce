"""What a reader sees of a run: the report, progress, figures. It knows nothing of how a run goes on."""
