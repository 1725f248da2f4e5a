"""A few of the damaged and odd inputs of `make fuzz`."""

from tests import fuzz


def test_damaged_and_odd_input_is_read_or_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(fuzz, "SECONDS", 100)  # against a hang; a test asserts no time
    counts, failures = fuzz.fuzz(60, seed=1)
    assert not failures
    assert sum(counts.values()) == 60 and len({kind for kind, _ in counts}) > 5
