"""The side of transformers and torch in benchmarks.step; see `engine`. LoRA is written out here:
adapters on q, k, v and o, as peft has them.
"""

import os

from jaxrope.shell import heap

CHUNK = 512  # positions whose logits exist at one time
SMOLLM2_135M = dict(
    vocab_size=49_152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    head_dim=64,
    max_position_embeddings=8192,
    rms_norm_eps=1e-5,
    rope_theta=100_000.0,
    tie_word_embeddings=True,
)


def make(case: dict):
    """Returns what runs a case of benchmarks.step once, and its loss."""
    import torch
    import transformers

    if case["name"] == "write":
        return lambda: _write(case["model"])
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    transformers.logging.disable_progress_bar()
    network = transformers.AutoModelForCausalLM.from_pretrained(
        case["model"],
        dtype=getattr(torch, case["dtype"]),
        attn_implementation=case["attention"],
    )
    ids = torch.as_tensor(case["ids"])
    if case["name"] == "evaluation":
        return _evaluation(network.eval(), ids[0], case["factors"])
    return _training(network.train(), ids, case["rank"])


def _write(folder) -> float:
    """Writes random weights of the shape of SmolLM2-135M."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SMOLLM2_135M)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return 0.0


def _training(network, ids_BT, rank):
    import torch

    class Adapted(torch.nn.Module):
        def __init__(self, linear):
            super().__init__()
            how = dict(dtype=linear.weight.dtype)
            self.linear = linear.requires_grad_(False)
            a = torch.randn(rank, linear.in_features, **how) / linear.in_features**0.5
            self.a = torch.nn.Parameter(a)
            self.b = torch.nn.Parameter(torch.zeros(linear.out_features, rank, **how))

        def forward(self, x):
            down = torch.nn.functional.linear(x, self.a)
            return self.linear(x) + torch.nn.functional.linear(down, self.b) * (16 / rank)

    if rank:
        network.requires_grad_(False)
        for layer in network.model.layers:
            for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
                setattr(layer.self_attn, name, Adapted(getattr(layer.self_attn, name)))
    trained = [p for p in network.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0, fused=True)
    inputs, targets = ids_BT[:, :-1].contiguous(), ids_BT[:, 1:].reshape(-1)

    def run():
        adam.zero_grad(set_to_none=True)
        logits = network(input_ids=inputs, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        adam.step()
        return loss.item()

    return run


def _evaluation(network, ids_T, factors_PR):
    import torch

    plain_R = network.model.rotary_emb.inv_freq.clone()
    candidates = [plain_R / torch.as_tensor(factors_R).float() for factors_R in factors_PR]

    @torch.inference_mode()
    def run():
        rotary, total = network.model.rotary_emb, 0.0
        rotary.attention_scaling = 1.1
        for inv_freq in candidates:
            rotary.inv_freq = inv_freq
            x = network.model(input_ids=ids_T[None, :-1], use_cache=False).last_hidden_state[0]
            parts = zip(x.split(CHUNK), ids_T[1:].split(CHUNK), strict=True)
            total += sum(
                torch.nn.functional.cross_entropy(
                    network.lm_head(part).float(), goal, reduction="sum"
                ).item()
                for part, goal in parts
            ) / len(x)
        return total / len(candidates)

    return run


def main() -> None:
    """Serves."""
    heap.keep()  # as on our side
    import torch
    import transformers

    from benchmarks import engine

    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    engine.serve(versions, make)


if __name__ == "__main__":
    main()
