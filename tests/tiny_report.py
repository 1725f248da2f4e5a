"""What programs leave in their workdirs, made up, and what a figure of it shows."""

import json


def row(suite, label, length, score, low, high, **more):
    name = suite if suite == "perplexity" else "accuracy"
    return {
        "suite": suite,
        "label": label,
        "length": length,
        "metrics": {name: score, "low": low, "high": high},
        "items": {"position_edges": [0, 1, 2, 4, 8], "position_nll": [4.0, 3.5, 3.0, 2.5]},
        "tokens": 1000,
        "seconds": 2.0,
    } | more


def gap(mean, low, high):
    return {"difference": {"baseline": "yarn", "mean": mean, "low": low, "high": high}}


ROWS = [
    row("perplexity", "none", 512, 32.9, 30.0, 36.0, **gap(0.0, 0.0, 0.0)),
    row("perplexity", "none", 4096, 107.1, 90.0, 126.0, **gap(0.98, 0.9, 1.06)),
    row("perplexity", "yarn", 512, 32.9, 30.0, 36.0),
    row("perplexity", "yarn", 4096, 40.3, 34.0, 48.0),
    row("perplexity", "mine & <co>", 4096, None, None, None, **gap(-0.02, -0.03, -0.01)),
    row("passkey", "none", 512, 1.0, 0.76, 1.0),
    row("passkey", "yarn", 512, 1.0, 0.76, 1.0),
]
NEEDLES = [
    row("needle-6", "yarn", 500, 0.96, 0.8, 0.99),
    row("needle-6", "yarn", 8192, 0.79, 0.6, 0.9),
    row("needle-1", "yarn", 500, 1.0, 0.86, 1.0),
]
GENERATIONS = [{"generation": i, "best": 60.0 - i, "mean": 80.0 - i} for i in range(5)]
BASELINES = {
    "pi": {"fitness": 97.0, "factors": [8.0] * 4},
    "yarn": {"fitness": 60.0, "factors": [1.0, 2.0, 8.0, 8.0]},
}
DESCENTS = {
    "ramp": [
        {"step": 0, "loss": 3.0, "losses": [2.0, 3.0, 4.0], "attention_factor": 1.0},
        {"step": 1, "loss": 2.5, "losses": [2.5], "attention_factor": 1.1},
    ]
}
LABELS = ["none", "yarn", "mine & <co>"]
STEPS = [{"step": i, "loss": 4 - i / 100, "lr": 1e-5, "tokens": 64} for i in range(1, 41)]


def lines_of(figure):
    return [line for ax in figure.axes for line in ax.get_lines()]


def names_of(figure):
    return {text.get_text().strip() for ax in figure.axes for text in ax.texts}


def judged(best):
    """The finalists of a search, its result 0.07 nats better than YaRN, and the verdict."""
    found = [("evolution", False, 4.025, 56.0), ("yarn", True, 4.094, 60.0)]
    found += [("pi", True, None, None)]
    return {
        "judged": [
            best | {"name": name, "is_baseline": known, "loss": loss, "fitness": fitness}
            for name, known, loss, fitness in found
        ],
        "beside": [
            {"sliding": 512, "losses": [4.0, 4.1], "fitness": 57.4},
            {"short": 512, "losses": [3.5, 3.5], "own_losses": [3.4, 3.4]}
            | {"fitness": 33.1, "own_fitness": 30.0},
        ],
        "verdict": {
            "result": "evolution",
            "best_baseline": "yarn",
            "is_better": True,
            "interval": [-0.08, -0.06],
            "samples": 8,
            "fresh": True,
            "sentence": "Better than every baseline.",
        },
    }


def write_workdirs(folder):
    """A search and a training in one folder, an evaluation in another."""
    first, second = folder / "first", folder / "second"
    first.mkdir()
    second.mkdir()
    best = {"max_len": 4096, "factors": [1.0, 2.0], "start_tokens": 4, "attention_factor": 1.15}
    baselines = [
        {"baseline": "yarn", "attention_factor": a, "fitness": f, "factors": [1.0, 8.0]}
        for a, f in ((1.2, 61.0), (1.15, 60.0))
    ]
    result = {
        "config": {"seed": 0},
        "unit": "perplexity",
        "perplexity": 56.0,
        "best": best,
        **judged(best),
        "generations": GENERATIONS,
        "baselines": baselines,
        "forward_tokens": 123_456,
        "seconds": 90.0,
    }
    (first / "result.json").write_text(json.dumps(result))
    scores = {"step": 40, "eval": {"perplexity/512": 33.3}}
    lines = [json.dumps(line) + "\n" for line in [*STEPS, scores]]
    (first / "metrics.jsonl").write_text("".join(lines))
    (first / "config.json").write_text(json.dumps({"train": {"seq_len": 512}}))
    content = {
        "command": "python -m jaxrope.evaluate --config.a='<b>'",
        "config": {"seed": 1},
        "model": {"original_len": 512, "source": "models/base"},
        "rows": ROWS,
    }
    (second / "eval.json").write_text(json.dumps(content))
    return [first, second]
