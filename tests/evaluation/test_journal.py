"""The journal: every item once, whatever was cut off; another evaluation's refused."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from stabledllm.errors import UserError
from stabledllm.evaluation import identity
from stabledllm.evaluation.identity import fingerprint
from stabledllm.evaluation.journal import Journal
from stabledllm.evaluation.ranks import Ranks
from stabledllm.models.tiny import TinyMDM, TinyMDMConfig

IDENTITY = {"model": "a", "decoding": {"length": 8, "top_p": 1.0}}


class Threads:
    """Ranks as threads of this process, with the guarantees of :class:`Ranks`."""

    def __init__(self, count: int, together: bool = False):
        self.barrier, self.said, self.count = threading.Barrier(count, timeout=20), None, count
        self.ranks = [Threaded(rank, count, together=together) for rank in range(count)]
        for rank in self.ranks:
            object.__setattr__(rank, "group", self)

    def run(self, job) -> list:
        with ThreadPoolExecutor(self.count) as pool:
            return [done.result() for done in [pool.submit(job, rank) for rank in self.ranks]]


class Threaded(Ranks):
    def agree(self, value):
        self.group.barrier.wait()
        if self.rank == 0:
            self.group.said = value
        self.group.barrier.wait()
        said = self.group.said
        self.group.barrier.wait()
        return said


def squares(worked: list[int], stop_at: int | None = None):
    def work(run: range) -> list[dict]:
        if stop_at is not None and stop_at in run:
            raise KeyboardInterrupt
        worked.extend(run)
        return [{"square": place**2} for place in run]

    return work


def expect(rows: list[dict], n: int) -> None:
    assert [(row["place"], row["square"]) for row in rows] == [(i, i * i) for i in range(n)]


def test_every_item_is_done_once_whatever_the_kill(tmp_path):
    for stop in range(10):
        journal, worked = Journal(tmp_path / str(stop), "squares", IDENTITY), []
        with pytest.raises(KeyboardInterrupt):
            journal.collect(10, 3, squares(worked, stop))
        assert worked == list(range(stop // 3 * 3)), "in runs of three"
        counted = []
        expect(journal.collect(10, 3, squares(worked), counted.append), 10)
        assert sorted(worked) == list(range(10))
        assert counted[0] == stop // 3 * 3
        assert sum(counted) == 10


def test_a_file_cut_anywhere_is_repaired(tmp_path):
    """Cut after each of its bytes in turn; the rest is done again, and the file is whole afterwards."""
    journal = Journal(tmp_path, "squares", IDENTITY)
    journal.collect(5, 2, squares([]))
    whole = journal.path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == 10]
    for cut in range(len(whole)):
        journal.path.write_bytes(whole[:cut])
        kept, worked = max(sum(end <= cut for end in ends) - 1, 0), []
        expect(journal.collect(5, 2, squares(worked)), 5)
        assert worked == list(range(kept, 5))
        for line in journal.path.read_text().splitlines():
            json.loads(line)
    journal.path.write_bytes(whole[: ends[-2]] + b"\0" * 20 + b"\n")  # blocks that never reached the disk
    expect(journal.collect(5, 2, squares([])), 5)


def test_ranks_share_the_runs_and_any_number_of_them_continues(tmp_path):
    worked: dict[int, list[int]] = {rank: [] for rank in range(5)}

    def collect(n: int, stop_at: int | None = None):
        def job(ranks: Ranks):
            return Journal(tmp_path, "squares", IDENTITY, ranks).collect(n, 2, squares(worked[ranks.rank], stop_at))

        return job

    for rows in Threads(3).run(collect(11)):
        expect(rows, 11)
    assert worked == {0: [0, 1, 6, 7], 1: [2, 3, 8, 9], 2: [4, 5, 10], 3: [], 4: []}, "dealt in turn"
    (tmp_path / "squares-1.jsonl").unlink()
    for journal in (tmp_path / "squares-0.jsonl", tmp_path / "squares-2.jsonl"):
        journal.write_bytes(journal.read_bytes()[:-4])  # two ranks killed while they wrote
    before = [place for places in worked.values() for place in places]
    for rows in Threads(2).run(collect(11)):
        expect(rows, 11)
    after = [place for places in worked.values() for place in places]
    assert sorted(after) == sorted([*before, 2, 3, 7, 8, 9, 10]), "only what was lost"


def test_a_model_in_shards_is_run_by_all_and_written_by_the_first(tmp_path):
    worked: dict[int, list[int]] = {0: [], 1: []}

    def job(ranks: Ranks):
        return Journal(tmp_path, "squares", IDENTITY, ranks).collect(5, 2, squares(worked[ranks.rank]))

    for rows in Threads(2, together=True).run(job):
        expect(rows, 5)
    assert worked == {0: [0, 1, 2, 3, 4], 1: [0, 1, 2, 3, 4]}
    assert [path.name for path in tmp_path.iterdir()] == ["squares-0.jsonl"]


def test_kinds_of_work_share_a_folder(tmp_path):
    Journal(tmp_path, "squares", IDENTITY).collect(3, 2, squares([]))
    others: list[int] = []
    expect(Journal(tmp_path, "others", IDENTITY).collect(4, 2, squares(others)), 4)
    assert others == [0, 1, 2, 3]


def test_another_evaluation_or_a_broken_file_is_one_sentence(tmp_path):
    journal = Journal(tmp_path, "squares", IDENTITY)
    journal.collect(3, 2, squares([]))
    other = {"model": "a", "decoding": {"length": 9, "top_p": 1.0}}
    with pytest.raises(UserError, match=r"decoding.length=8, found decoding.length=9; write this one to another"):
        Journal(tmp_path, "squares", other).collect(3, 2, squares([]))
    lines = journal.path.read_text().splitlines()
    for number, broken in ((2, "{"), (3, '{"square": 1}'), (1, '{"schema": "other"}'), (1, "[]")):
        journal.path.write_text("\n".join([*lines[: number - 1], broken, *lines[number:]]) + "\n")
        with pytest.raises(UserError, match=r"squares-0\.jsonl.*expected"):
            journal.collect(3, 2, squares([]))


def save(folder, seed: int) -> str:
    torch.manual_seed(seed)
    shape = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
    TinyMDM(TinyMDMConfig(**shape)).save_pretrained(folder)
    return str(folder)


def test_the_fingerprint_is_of_what_a_model_computes(tmp_path, monkeypatch):
    a, same, b = (save(tmp_path / name, seed) for name, seed in (("a", 0), ("same", 0), ("b", 1)))
    assert fingerprint(a) == fingerprint(same) != fingerprint(b)
    (tmp_path / "same" / "trainer_state.json").write_text("{}")
    assert fingerprint(a) == fingerprint(same), "not of what lies beside it"
    monkeypatch.setattr(identity, "_WHOLE", 100)
    monkeypatch.setattr(identity, "_PIECE", 64)
    assert fingerprint(a) == fingerprint(same) != fingerprint(b), "large files by pieces"
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    found = []
    for base in (a, same, b):
        (adapter / "adapter_config.json").write_text("{}")
        found.append(fingerprint(str(adapter), base))
    assert found[0] == found[1] != found[2], "an adapter's result is its base's too"
