"""Where on a mesh the tokens of a row go: filled up to a length that divides, and permuted.

Done on the host, once for each batch. What comes back for each token is put into its natural order
again where it is reported.

Letters: B batch, T length.
"""

import numpy as np

from jaxrope import attention
from jaxrope.decoder.settings import ForwardSettings
from jaxrope.mesh import sharding


def token_order(settings: ForwardSettings, length: int) -> np.ndarray | None:
    """Returns the token at each place of a row of `length`; None: the natural order."""
    context = sharding.ways(settings.mesh, "context")
    return attention.order(settings.attention, length, context, settings.ulysses)


def legal_length(settings: ForwardSettings, length: int) -> int:
    """Returns the least length from `length` on that attention can have on the mesh."""
    context = sharding.ways(settings.mesh, "context")
    unit = attention.length_unit(
        settings.attention, settings.attention_kernel, context=context, ulysses=settings.ulysses
    )
    return -(-length // unit) * unit


def lay_out(
    settings: ForwardSettings, rows: np.ndarray, weights_BT: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Returns what predicts each token of `rows` but the first from those before it.

    Args:
      settings: how the model is run.
      rows: int32 [B, T + 1].
      weights_BT: what each prediction counts; None: 1.

    Returns:
      tokens_BT, targets_BT, positions_BT, int32, and weights_BT, float32: 0 for tokens behind the
      end, which no other one sees, else as given.
    """
    tokens_BT, targets_BT = rows[:, :-1], rows[:, 1:]
    length = tokens_BT.shape[1]
    weights_BT = np.ones(tokens_BT.shape) if weights_BT is None else weights_BT
    padded = legal_length(settings, length)
    order = token_order(settings, padded)

    def place(x_BT: np.ndarray) -> np.ndarray:
        x_BT = np.pad(x_BT, ((0, 0), (0, padded - x_BT.shape[1])))
        return x_BT if order is None else x_BT[:, order]

    positions_BT = np.broadcast_to(np.arange(padded, dtype=np.int32), (len(rows), padded))
    return {
        "tokens_BT": place(tokens_BT.astype(np.int32)),
        "targets_BT": place(targets_BT.astype(np.int32)),
        "positions_BT": place(positions_BT),
        "weights_BT": place(np.asarray(weights_BT, np.float32)),
    }


def natural_order(settings: ForwardSettings, values_BT: np.ndarray, length: int) -> np.ndarray:
    """Returns the values of the `length` tokens of a row, undoing what `lay_out` did."""
    order = token_order(settings, values_BT.shape[1])
    if order is not None:
        values_BT = values_BT[:, np.argsort(order)]
    return values_BT[:, :length]
