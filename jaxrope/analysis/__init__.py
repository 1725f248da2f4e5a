"""Statistics of attention at any length: patterns, uncertainty, frequencies, heads."""
