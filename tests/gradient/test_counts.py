"""Weights of counts: what is kept of them is bounded, whatever lengths the data has."""

from stabledllm.gradient import counts
from stabledllm.noise.objective import Objective


def test_many_lengths_keep_a_bounded_number_of_bytes():
    kept = 0
    for size in range(200, 300, 5):
        counts.count_weights(size, Objective())
        kept = max(kept, sum(w.bytes for w in counts._cache.values()))
    assert 2**26 < kept <= counts._CACHED, "or nothing is kept"
    last = counts.count_weights(295, Objective())
    assert counts.count_weights(295, Objective()) is last


def test_one_length_beyond_the_bound_is_not_kept(monkeypatch):
    monkeypatch.setattr(counts, "_CACHED", 1000)
    assert counts.count_weights(7, Objective()).mean.shape[0] == 7
    assert not counts._cache
