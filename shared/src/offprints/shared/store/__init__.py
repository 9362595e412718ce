"""What a run keeps on the disk: its folder, settings, states, checkpoints and logs, whole at every instant."""
