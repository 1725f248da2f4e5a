"""Import from and export to Hugging Face. Only this package contains Hugging Face's names."""
