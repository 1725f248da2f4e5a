"""Files that outlive a process: atomic writes, locks, checkpoints and their steps."""
