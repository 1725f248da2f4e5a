"""Hugging Face folders both ways. The only part of the package that knows Hugging Face's names."""
