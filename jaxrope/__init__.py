"""jaxrope: longer context windows for language models with rotary position embeddings."""

__version__ = "0.1.0"
