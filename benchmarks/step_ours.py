"""Our side of benchmarks.step; see `engine`."""

import functools

from jaxrope.shell import heap


def make(case: dict):
    """Returns what runs a case of benchmarks.step once, and its loss."""
    from jaxrope.convert import pretrained

    model = pretrained.load(case["model"])
    settings = dict(compute_dtype=case["dtype"], attention_block=512)
    return (_evaluation if case["name"] == "evaluation" else _training)(model, case, settings)


def _training(model, case, settings):
    """An optimizer step, AdamW with clipping, of all weights or of adapters."""
    import jax
    import numpy as np

    from configs import base
    from jaxrope import decoder
    from jaxrope.schema import training
    from jaxrope.train import lora as lora_lib
    from jaxrope.train import optimizer
    from jaxrope.train import step as step_lib

    ids_BT = np.asarray(case["ids"], np.int32)
    settings = decoder.ForwardSettings(remat="none", **settings)
    section = base.optimizer().to_dict()  # AdamW, clipped at 1
    section |= dict(learning_rate=1e-4, schedule=dict(name="constant", warmup_steps=0))
    made = optimizer.make(training.Optimizer(**section), num_steps=1000)
    lora = base.lora().to_dict()
    lora |= dict(rank=case["rank"], train_norms=False, train_embeddings=False)
    dtypes = dict(param_dtype="float32", compute_dtype=case["dtype"])
    lora = lora_lib.make(training.Lora(**lora), model.config, **dtypes)
    how = dict(chunk_tokens=512, packed=False, lora=lora)
    step = jax.jit(step_lib.make_step(model.config, settings, made, **how), donate_argnums=0)
    tokens = ids_BT.shape[1] - 1
    shape = (1, ids_BT.shape[0], tokens)
    batch = {
        "tokens_BT": ids_BT[:, :-1].reshape(shape),
        "targets_BT": ids_BT[:, 1:].reshape(shape),
        "positions_BT": np.broadcast_to(np.arange(tokens, dtype=np.int32), shape),
        "segment_ids_BT": np.ones(shape, np.int32),
        "loss_weights_BT": np.ones(shape, np.float32),
    }
    batch, rope = jax.device_put((batch, model.rope_fn(tokens)))

    @jax.jit  # copies: leaves that share memory with each other cannot be donated
    def begin(params):
        params = lora_lib.begin(params, model.config, lora, jax.random.key(0))
        return step_lib.init_state(params, made.transform, lora)

    state = begin(model.params)

    def run():
        nonlocal state
        state, metrics = step(state, batch, rope)
        return float(metrics["loss"])

    return run


def _evaluation(model, case, settings):
    """The mean loss of candidates on one text."""
    import jax
    import numpy as np

    from jaxrope import decoder, rope
    from jaxrope.mesh import sharding
    from jaxrope.search import evaluator, objective

    ids_T = np.asarray(case["ids"][0], np.int32)
    mesh = sharding.make_mesh(dict(data=1, fsdp=1, context=1, tensor=1), jax.devices()[:1])
    config, settings = model.config, decoder.ForwardSettings(mesh=mesh, **settings)
    ropes = [rope.build(f, theta=config.theta, attention_factor=1.1) for f in case["factors"]]
    judge = objective.Objective(
        loss_fn=objective.mean_nll(config, settings),
        samples=ids_T[None],
        lay_out=functools.partial(decoder.lay_out, settings),
        fitness_fn=np.exp,
        unit="perplexity",
        sample_tokens=len(ids_T) - 1,
        scored_tokens=len(ids_T) - 1,
    )
    dtype = decoder.DTYPES[case["dtype"]]
    params = jax.tree.map(lambda leaf: np.asarray(leaf, dtype), model.params)
    made = evaluator.make(judge, config, params, per_device=len(ropes), mesh=mesh)
    return lambda: float(evaluator.evaluate(made, ropes).mean())


def main() -> None:
    """Serves."""
    heap.keep()  # as our programs do
    import jax

    from benchmarks import engine

    engine.serve({"jax": jax.__version__}, make)


if __name__ == "__main__":
    main()
