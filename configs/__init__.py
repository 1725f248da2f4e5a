"""The experiment files that ship with jaxrope, which is installed with them as `jaxrope.configs`.

A program finds one by its name, in any folder: --config=256k.py:llama3_8b. Elsewhere `jaxrope.shell.experiment.load` reads it, and
`from jaxrope.configs import base` is what a file of one's own begins with, unless it lies beside a folder `configs`.
"""
