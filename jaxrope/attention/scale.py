"""How products of queries and keys become logits: scaled, and capped where a model does that."""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Scale:
    """Static; every kernel takes one.

    Attributes:
      factor: of the products.
      cap: logits become cap * tanh(logit / cap) (Gemma 2, arXiv 2408.00118, section 2); None: they
        stay as they are.
    """

    factor: float
    cap: float | None = None

    def logits(self, products: jax.Array) -> jax.Array:
        """Returns the logits of products of queries and keys."""
        logits = self.factor * products
        return logits if self.cap is None else self.cap * jnp.tanh(logits / self.cap)

    def slope(self, logits: jax.Array) -> jax.Array | float:
        """Returns the derivative of the logits by the products."""
        return self.factor if self.cap is None else self.factor * self.bend(logits)

    def bend(self, logits: jax.Array) -> jax.Array:
        """Returns the derivative of capped logits by those before the cap."""
        return 1 - jnp.square(logits / self.cap)
