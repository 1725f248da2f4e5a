"""What attention does, at any length: patterns, uncertainty, frequencies, heads."""
