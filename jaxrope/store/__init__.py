"""Files that outlive a process: atomic writes, locks, journals, checkpoints and their steps."""
