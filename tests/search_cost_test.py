"""What a search says that it will cost, and what it costs."""

import pytest

from jaxrope import search
from jaxrope.search import cost, verdict
from tests.search_config import changed, rows_of, tiny, tiny_default
from tests.search_run_test import BASELINES, BESIDE, EVALUATIONS, JUDGED


def test_estimate_tells_tokens_memory_and_time(tmp_path):
    text = search.dry_run(tiny(tmp_path))
    assert "trained on 16 tokens" in text and "64 tokens, 4 times as many" in text
    counts = dict(baselines=BASELINES, evolution=EVALUATIONS, judging=JUDGED)
    parts = [f"{phase} {count * 2 * 64:,}" for phase, count in counts.items()]
    total = sum(counts.values()) * 2 * 64 + BESIDE
    assert f"{total:,} at most ({', '.join(parts)}, beside {BESIDE})" in text
    assert "a candidate reads 2 samples of 64" in text
    assert "\ngradient instead" in text and "\nhybrid instead" in text
    assert "GiB for each candidate" in text and "tokens/s, measured" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "model", "texts"]


@pytest.mark.parametrize("method", ["evolution", "gradient", "hybrid"])
def test_the_estimate_bounds_what_the_search_costs(tmp_path, method):
    """And every phase but descents: what the journal has is no more than was planned, and for
    judging what it may need beyond."""
    config = changed(tiny_default(tmp_path), search__method=method)
    problem = search.prepare(config)
    planned = cost.planned(problem)
    planned["judging"] += verdict.most_beyond(problem)
    content = search.search(config, tmp_path / "run").content
    rows, kinds = rows_of(tmp_path / "run"), dict(baselines="baseline", judging="judged")
    kinds |= dict(
        ramp="ramp", evolution="genome", descent="descent", sliding="sliding", short="short"
    )
    spent = {
        phase: sum(row.get("tokens", 64 * len(row["losses"])) for row in rows if kind in row)
        for phase, kind in kinds.items()
    }
    spent["judging"] += sum(64 * len(row["losses"]) for row in rows if "judged again" in row)
    spent["descent"] *= 3
    spent["beside"] = spent.pop("sliding") + spent.pop("short")
    spared = {phase: count - spent[phase] for phase, count in planned.items()}
    descent = -spared.pop("descent", 0)  # spends what baselines and ramps did not need
    assert min(spared.values()) >= 0 and spared["beside"] == 0
    assert 0 <= descent <= sum(spared.values())
    assert content["forward_tokens"] == sum(spent.values()) <= sum(planned.values())


ONE_SAMPLE = dict(name="perplexity", num_samples=1, offset_tokens=0)


def test_estimate_extrapolates_what_is_long(tmp_path, monkeypatch):
    monkeypatch.setattr(cost, "_CPU_OPERATIONS", 1.0)
    config = changed(tiny(tmp_path), target_len=180, search__objective=ONE_SAMPLE)
    text = search.dry_run(config)
    assert "tokens/s, extrapolated from 90 tokens" in text and "not known" not in text
