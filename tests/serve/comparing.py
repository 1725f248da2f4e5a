"""Log-probabilities and choices of a program against our forward pass."""

import numpy as np

MEDIAN, MOST = 1e-4, 1e-3  # nats, of weights and caches in float32


def log_probs(logits_TV: np.ndarray) -> np.ndarray:
    """Returns them in float64."""
    logits_TV = np.float64(logits_TV) - logits_TV.max(-1, keepdims=True)
    return logits_TV - np.log(np.exp(logits_TV).sum(-1, keepdims=True))


def own(logits_TV: np.ndarray, ids) -> np.ndarray:
    """Returns the log-probabilities of the text's own tokens, but for the first."""
    places = np.arange(len(ids) - 1)
    return log_probs(logits_TV)[places, np.asarray(ids)[1:]]


def off_by(ours_TV: np.ndarray, theirs_TV: np.ndarray, ids) -> np.ndarray:
    """How far the log-probabilities of the text's own tokens are apart."""
    return np.abs(own(ours_TV, ids) - own(theirs_TV, ids))


def greedy_agrees(ours_TV: np.ndarray, greedy, most: float) -> tuple[int, int]:
    """Returns (equal choices, all); those must be equal that a difference of `most` cannot change.

    Args:
      ours_TV: our logits of a text and its continuation.
      greedy: the continuation.
      most: largest difference of a log-probability, nats.
    """
    rows = ours_TV[len(ours_TV) - len(greedy) - 1 : -1]
    best = np.sort(rows, -1)
    is_clear = best[:, -1] - best[:, -2] > 2 * most
    agree = rows.argmax(-1) == np.asarray(greedy)
    assert agree[is_clear].all()
    return int(agree.sum()), len(greedy)
