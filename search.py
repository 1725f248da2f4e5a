"""Searches rope factors for a longer window: `python -m jaxrope.search` from a checkout."""

from jaxrope.search.__main__ import main

if __name__ == "__main__":
    main()
