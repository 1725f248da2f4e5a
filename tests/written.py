"""In place of generation: a model that writes what a test says, through the same interface."""

from collections.abc import Callable

from jaxrope import generate


def replace_generation(monkeypatch, tokenizer, text_fn: Callable) -> list:
    """Makes generation write text_fn(prompt tokens) and then eos, greedily obeyed.

    Returns:
      the calls, as (model, prompts, options).
    """
    calls = []
    eos = [] if tokenizer.eos_id is None else [tokenizer.eos_id]

    def stream(model, prompts, options, *, stop_fn=None, timing=None):
        calls.append((model, prompts, options))
        left = {
            row: [*tokenizer.encode(text_fn(prompt)).tolist(), *eos]
            for row, prompt in enumerate(prompts)
        }
        for _ in range(options.max_new_tokens):
            new = [(row, tokens.pop(0)) for row, tokens in left.items() if tokens]
            ended = {row for row, token in new if token in options.stop or stop_fn(row, token)}
            yield new
            left = {row: tokens for row, tokens in left.items() if row not in ended and tokens}
            if not left:
                return

    monkeypatch.setattr(generate, "stream", stream)
    return calls
