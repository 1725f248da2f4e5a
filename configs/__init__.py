"""The experiment files that ship with jaxrope, which is installed with them as `jaxrope.configs`.

Programs find them by name from any folder: --config=256k.py:llama3_8b. In Python, `jaxrope.shell.experiment.load` reads one. Your own
experiment file begins with `from jaxrope.configs import base`; `from configs import base` means a folder `configs` beside the file, if there is one.
"""
