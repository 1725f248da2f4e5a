"""Prints what an installed package needs here, a line each, but for some.

python requirements.py PACKAGE LEFT_OUT ...
"""

import sys
from importlib.metadata import requires

from packaging.requirements import Requirement

package, *left_out = sys.argv[1:]
for needed in map(Requirement, requires(package)):
    is_here = needed.marker is None or needed.marker.evaluate({"extra": ""})
    if is_here and needed.name not in left_out:
        needed.marker = None
        print(needed)
