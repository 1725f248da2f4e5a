"""A random order that is a function of its seed alone."""

import numpy as np


def permutation(size: int, *, seed: int, epoch: int) -> np.ndarray:
    """Returns the int64 order of `size` items in one epoch.

    It sorts the raw words of Philox under the key (seed, epoch). NumPy promises that stream for
    ever (NEP 19), and does not promise that of `Generator.permutation`; a resumed run may have
    another NumPy.

    Args:
      size: number of items.
      seed: 0 to 2**64 - 1.
      epoch: 0 to 2**64 - 1; another epoch has an independent order.
    """
    words = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(size)
    return np.argsort(words, kind="stable")
