"""The same perplexity here and in transformers, on one text, of a model and of its export.

  .venv/bin/python tests/export_perplexity.py MODEL HF_DIR TEXT [LENGTH ...]

in the environment that `make test` makes. MODEL is whatever `pretrained.load` takes. Prints a line
for each length, our perplexity and theirs; exit code 1 if they do not agree to four digits.
"""

import math
import sys

import jax
import jax.numpy as jnp

from jaxrope import data, decoder
from jaxrope.convert import pretrained
from jaxrope.decoder import losses


def our_nll(model, tokens, rope_len):
    """Mean NLL in nats of tokens[1:], one context from position 0; factors for `rope_len`."""
    inputs, targets = jnp.asarray(tokens[:-1])[None], jnp.asarray(tokens[1:])[None]
    rope = model.rope_fn(rope_len)

    @jax.jit
    def run(params, rope):
        hidden = decoder.hidden(model.config, params, inputs, rope)
        head = decoder.head_DV(model.config, params)
        return losses.nll_and_hits(hidden, head, targets, chunk=512)[0].mean()

    return float(run(model.params, rope))


def their_nll(folder, tokens):
    """The same by torch and transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.tensor(tokens.tolist())[None]
    with torch.no_grad():
        logits = theirs(ids[:, :-1]).logits[0]
    return float(torch.nn.functional.cross_entropy(logits, ids[0, 1:]))


def compare(source, folder, text, lengths):
    """Yields (length, our perplexity, theirs) of a text file."""
    model = pretrained.load(source)
    tokenizer = data.load_tokenizer(folder)
    documents = data.load_documents([text], tokenizer)
    for length in lengths:
        windows = data.eval_windows(
            documents, length=length, num_windows=1, bos_id=model.config.bos_id
        )
        tokens = windows.tokens_WT[0]
        yield length, math.exp(our_nll(model, tokens, length)), math.exp(their_nll(folder, tokens))


def agree(ours, theirs):
    """Whether two perplexities round to the same four digits, or differ by less than one in 1e4."""
    return f"{ours:.4g}" == f"{theirs:.4g}" or abs(ours / theirs - 1) < 1e-4


if __name__ == "__main__":
    source, folder, text, *rest = sys.argv[1:]
    wrong = 0
    for length, ours, theirs in compare(source, folder, text, [int(n) for n in rest] or [512]):
        wrong += not agree(ours, theirs)
        print(f"{length:6d} tokens: ours {ours:.5g}, transformers {theirs:.5g}", flush=True)
    sys.exit(wrong > 0)
