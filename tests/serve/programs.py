"""Opens model folders in transformers or vLLM, with float32, and asks them.

python programs.py transformers|vllm REQUESTS.json OUT.json, in an environment that has the program.

REQUESTS is a list of objects: "model"; "prompts", lists of ids; "greedy", how many tokens more;
"more", further or other arguments of vLLM's LLM. An answer has, for each prompt, "logprobs" of its
own tokens but for the first, "greedy" and "chosen", the log-probabilities of those; or "error".
"""

import gc
import json
import os
import sys


def ask_transformers(request: dict) -> dict:
    """Returns an answer."""
    import torch
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(request["model"], dtype=torch.float32).eval()
    rows, greedy, chosen = [], [], []
    for ids in request["prompts"]:
        ids = torch.tensor([ids])
        with torch.no_grad():
            logs = network(ids).logits[:, :-1].log_softmax(-1)
            options = dict(do_sample=False, eos_token_id=None, pad_token_id=0)
            options |= dict(return_dict_in_generate=True, output_scores=True)
            more = network.generate(ids, max_new_tokens=request["greedy"], **options)
        rows.append(logs.gather(-1, ids[:, 1:, None])[0, :, 0].tolist())
        greedy.append(more.sequences[0, ids.shape[1] :].tolist())
        chosen.append([scores[0].log_softmax(-1).max().item() for scores in more.scores])
    return {"logprobs": rows, "greedy": greedy, "chosen": chosen}


def ask_vllm(request: dict) -> dict:
    """Returns an answer, with "max_len", the longest sequence that it takes."""
    from vllm import LLM, SamplingParams
    from vllm.distributed import cleanup_dist_env_and_memory

    options = dict(dtype="float32", enforce_eager=True, max_num_seqs=1, disable_log_stats=True)
    options |= dict(enable_prefix_caching=False, kv_cache_memory_bytes=2**28)
    llm = LLM(request["model"], **options | request.get("more", {}))
    sampling = dict(temperature=0, prompt_logprobs=0, logprobs=0, ignore_eos=True, detokenize=False)
    rows, greedy, chosen = [], [], []
    max_len = llm.llm_engine.model_config.max_model_len
    try:
        for ids in request["prompts"]:
            params = SamplingParams(max_tokens=request["greedy"], **sampling)
            (answer,) = llm.generate([{"prompt_token_ids": ids}], params, use_tqdm=False)
            places = zip(ids[1:], answer.prompt_logprobs[1:], strict=True)
            rows.append([place[number].logprob for number, place in places])
            (output,) = answer.outputs
            greedy.append(list(output.token_ids))
            places = zip(output.token_ids, output.logprobs, strict=True)
            chosen.append([place[number].logprob for number, place in places])
    finally:
        del llm
        cleanup_dist_env_and_memory()
        gc.collect()
    return {"logprobs": rows, "greedy": greedy, "chosen": chosen, "max_len": max_len}


def main() -> None:
    """Answers the requests of a file."""
    name, source, target = sys.argv[1:]
    ask_fn = {"transformers": ask_transformers, "vllm": ask_vllm}[name]
    answers = []
    for request in json.load(open(source, encoding="utf-8")):
        try:
            answers.append(ask_fn(request))
        except Exception as error:  # each program has its own
            answers.append({"error": f"{type(error).__name__}: {error}"})
    version = __import__(name).__version__
    json.dump({"version": version, "answers": answers}, open(target, "w", encoding="utf-8"))


if __name__ == "__main__":
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1"}
    os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    main()
