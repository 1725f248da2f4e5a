"""The pieces in which a row lies on the devices of axis `context`, and what goes from one to the
next whatever devices they are on.

A piece is of neighbouring tokens; a ring deals two of them to each device, other backends one
(`attention.order`). A layer that computes token after token treats pieces as rows: the last tokens
before each come from `before`, its state from `carried`. Without such an axis a row is one piece.

Letters: B batch, T tokens of a device, P pieces of a device, X tokens of a piece, Z = B P,
S pieces of a row, W width.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxrope.attention import AXIS
from jaxrope.decoder import layout
from jaxrope.decoder.settings import ForwardSettings
from jaxrope.mesh import sharding


@dataclasses.dataclass(frozen=True)
class Pieces:
    """Which pieces a device has.

    Attributes:
      order: places of the pieces in the row, [devices, P].
    """

    order: np.ndarray

    @property
    def per_device(self) -> int:
        """P."""
        return self.order.shape[1]

    @property
    def spread(self) -> bool:
        """Whether a row is on several devices."""
        return len(self.order) > 1

    def cut(self, x_BT: jax.Array) -> jax.Array:
        """Returns [Z, X, ...] of this device's tokens."""
        return x_BT.reshape(x_BT.shape[0] * self.per_device, -1, *x_BT.shape[2:])

    def joined(self, x_ZX: jax.Array) -> jax.Array:
        """Returns [B, T, ...]; undoes `cut`."""
        return x_ZX.reshape(x_ZX.shape[0] // self.per_device, -1, *x_ZX.shape[2:])

    def before(self, x_ZX: jax.Array, width: int) -> jax.Array:
        """Returns [Z, W, ...]: the last tokens before each piece; zeros before the first one."""
        if not self.spread or not width:
            return jnp.zeros_like(x_ZX, shape=(x_ZX.shape[0], width, *x_ZX.shape[2:]))
        last = min(width, x_ZX.shape[1])
        tails = self._gathered(x_ZX[:, x_ZX.shape[1] - last :])
        tails = jnp.moveaxis(tails, 0, 1).reshape(tails.shape[1], -1, *tails.shape[3:])
        tails = jnp.pad(tails, ((0, 0), (width, 0)) + ((0, 0),) * (tails.ndim - 2))
        found = [
            jax.lax.dynamic_slice_in_dim(tails, place * last, width, axis=1)
            for place in self._places()
        ]
        return jnp.stack(found, axis=1).reshape(x_ZX.shape[0], width, *x_ZX.shape[2:])

    def carried(self, step_fn: Callable, steps, start_B: jax.Array) -> jax.Array:
        """Returns the state before each piece, [Z, ...]; every device computes those of all.

        Args:
          step_fn: (state after a piece, [B, ...]) of (its part of steps, state before it).
          steps: pytree of arrays [Z, ...], what each piece does.
          start_B: the state before the first piece.
        """
        steps = jax.tree.map(self._gathered, steps)
        _, before = jax.lax.scan(lambda x, step: (step_fn(step, x), x), start_B, steps)
        mine = jnp.stack([before[place] for place in self._places()], axis=1)
        return mine.reshape(-1, *mine.shape[2:])

    def _gathered(self, x_Z: jax.Array) -> jax.Array:
        """Returns [S, B, ...] of all pieces of a row, in its order."""
        x_BP = x_Z.reshape(-1, self.per_device, *x_Z.shape[1:])
        x_SB = jax.lax.all_gather(jnp.moveaxis(x_BP, 1, 0), AXIS, tiled=True)
        return x_SB[np.argsort(self.order.ravel())]

    def _places(self) -> list[jax.Array]:
        return list(jnp.asarray(self.order)[jax.lax.axis_index(AXIS)])


def of(settings: ForwardSettings) -> Pieces:
    """Returns the pieces of a row on settings.mesh."""
    context = sharding.ways(settings.mesh, AXIS)
    order = layout.token_order(settings, 2 * context)
    return Pieces(np.arange(context)[:, None] if order is None else order.reshape(context, 2))
