"""Trains a model, or runs a recipe: `python -m jaxrope.train` from a checkout."""

from jaxrope.train.__main__ import main

if __name__ == "__main__":
    main()
