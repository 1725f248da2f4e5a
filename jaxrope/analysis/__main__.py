"""The former name of `python -m jaxrope.analyse`."""

import runpy

if __name__ == "__main__":
    runpy.run_module("jaxrope.analyse", run_name="__main__", alter_sys=True)
