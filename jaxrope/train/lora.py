"""What a training changes: everything, or low-rank adapters with norms and embeddings (LongLoRA,
arXiv 2309.12307, section 3.3), the rest frozen.

Experts and their routers have no adapters: which expert a token meets stays what they were trained
for, and attention is what a longer context asks for.

A frozen weight has no gradient, no moments and no float32 master: it lies in the compute dtype,
which is what the forward pass makes of it in any case.

Letters: U rank of an adapter; else those of the model.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from jaxrope import decoder
from jaxrope.decoder import adapters
from jaxrope.errors import InputError
from jaxrope.mesh import sharding
from jaxrope.schema import training


@dataclasses.dataclass(frozen=True)
class Lora:
    """Adapters, and what is trained beside them.

    Attributes:
      rank: of the adapters.
      alpha: what they add is multiplied by alpha / rank.
      targets: linear layers that have adapters, of adapters.TARGETS.
      train_norms, train_embeddings: whether these are trained.
      dtype, frozen_dtype: of what is trained, and of everything that is not.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]
    train_norms: bool
    train_embeddings: bool
    dtype: str
    frozen_dtype: str

    def trains(self, name: str) -> bool:
        """Returns whether the parameter of this name is trained."""
        if "norm" in name:
            return self.train_norms
        if name == "embed_VD":
            return self.train_embeddings
        return adapters.is_adapter(name) and name != adapters.SCALE


def make(
    section: training.Lora, model: decoder.DecoderConfig, *, param_dtype: str, compute_dtype: str
) -> Lora | None:
    """Returns config.lora; None for rank 0: everything is trained.

    Args:
      section: config.lora.
      model: its shape.
      param_dtype: of master weights, which adapters have.
      compute_dtype: of the forward pass, which frozen weights have.

    Raises:
      InputError: a target is not in the model, or has fewer inputs than the rank.
    """
    if section.rank == 0:
        return None
    if "head" in section.targets and model.tie_embeddings:
        raise InputError(
            "lora.targets must not name head: the head of this model is its embedding. Set"
            " lora.train_embeddings = True."
        )
    of_mlp = [target for target in section.targets if target in ("gate", "up", "down")]
    if of_mlp and model.num_expert_layers == model.num_layers:
        raise InputError(
            f"lora.targets must not name {of_mlp[0]}: the MLPs of this model are experts, which"
            " have no adapters. Name q, k, v and o."
        )
    lora = Lora(**section.to_dict(), dtype=param_dtype, frozen_dtype=compute_dtype)
    most = min(_fan_in(name, leaf) for name, leaf in _targets(lora, model).items())
    section.require(section.rank <= most, "rank", f"be at most {most}, the inputs of a target")
    return lora


def abstract_params(model: decoder.DecoderConfig, lora: Lora | None, param_dtype: str) -> dict:
    """Returns the shapes and dtypes of all parameters, frozen and trained."""
    base = decoder.abstract_params(model, param_dtype)
    if lora is None:
        return base
    drawn = jax.eval_shape(lambda key: _draw(model, lora, key), jax.random.key(0))
    return join(jax.eval_shape(lambda p: freeze(p, lora), base), drawn)


def param_shardings(model: decoder.DecoderConfig, lora: Lora | None, mesh) -> dict:
    """Returns where all parameters lie, adapters as the sides of what they adapt.

    Raises:
      InputError: an axis of the model does not divide by its devices.
    """
    abstract = abstract_params(model, lora, "float32")
    return sharding.param_shardings(mesh, decoder.axes_by_name(abstract), abstract)


def begin(params: dict, model: decoder.DecoderConfig, lora: Lora | None, key: jax.Array) -> dict:
    """Returns the parameters a training begins with: a model's, frozen, and fresh adapters.

    b is zero, so that the model computes what it did; a is normal with the deviation
    1 / sqrt(inputs), so that x a is as large as x.

    Args:
      params: of a plain model, in the dtype of master weights; under jit, or of the host.
      model: its shape.
      lora: None: returned as they are.
      key: for the adapters.
    """
    if lora is None:
        return params
    return join(freeze(params, lora), _draw(model, lora, key))


def split(params: dict, lora: Lora | None) -> tuple[dict, dict]:
    """Returns (what is trained, the rest) of a tree of the parameters' names."""
    if lora is None:
        return params, {"layers": {}}

    def part(tree, is_trained):
        return {
            name: part(leaf, is_trained) if name == "layers" else leaf
            for name, leaf in tree.items()
            if name == "layers" or lora.trains(name) is is_trained
        }

    return part(params, True), part(params, False)


def join(first: dict, second: dict) -> dict:
    """Returns the tree whose two parts `split` returns."""
    return first | second | {"layers": first["layers"] | second["layers"]}


def num_trained(model: decoder.DecoderConfig, lora: Lora | None) -> int:
    """Returns the number of parameters that are trained."""
    trained, _ = split(abstract_params(model, lora, "float32"), lora)
    return sum(leaf.size for leaf in jax.tree.leaves(trained))


def freeze(params: dict, lora: Lora | None) -> dict:
    """Returns a plain model's parameters, those that are not trained in the dtype of the frozen."""
    if lora is None:
        return params
    trained, frozen = split(params, lora)
    dtype = decoder.DTYPES[lora.frozen_dtype]
    return join(trained, jax.tree.map(lambda leaf: leaf.astype(dtype), frozen))


def _draw(model: decoder.DecoderConfig, lora: Lora, key: jax.Array) -> dict:
    """Returns the adapters alone, and their scale."""
    dtype = decoder.DTYPES[lora.dtype]
    scale_L = jnp.full((model.num_layers,), lora.alpha / lora.rank, jnp.float32)
    drawn: dict = {"layers": {adapters.SCALE: scale_L}}
    targets = _targets(lora, model)
    for target_key, (name, leaf) in zip(
        jax.random.split(key, len(targets)), targets.items(), strict=True
    ):
        a_name, b_name = adapters.names(name)
        of_layers = "L" in name.rsplit("_", 1)[1]
        lead, num_in = leaf.shape[:of_layers], len(a_name.rsplit("_", 1)[1]) - 1 - of_layers
        ins, outs = leaf.shape[of_layers:][:num_in], leaf.shape[of_layers:][num_in:]
        a = jax.random.normal(target_key, (*lead, *ins, lora.rank)) / math.sqrt(_fan_in(name, leaf))
        place = drawn["layers"] if of_layers else drawn
        place[a_name] = a.astype(dtype)
        place[b_name] = jnp.zeros((*lead, lora.rank, *outs), dtype)
    return drawn


def _targets(lora: Lora, model: decoder.DecoderConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the weights that have adapters, by name, in the order of lora.targets."""
    base = decoder.abstract_params(model)
    by_stem = {name.rsplit("_", 1)[0]: name for name in (*base, *base["layers"])}
    names = [by_stem[target] for target in lora.targets]
    return {name: base["layers"].get(name, base.get(name)) for name in names}


def _fan_in(name: str, leaf) -> int:
    letters = name.rsplit("_", 1)[1]
    ins = adapters.names(name)[0].rsplit("_", 1)[1].removeprefix("L").removesuffix("U")
    return math.prod(leaf.shape[letters.index(letter)] for letter in ins)
