"""The cache of tokenised rows: the same rows as in memory, found damaged, continued after a kill, never stale."""

from __future__ import annotations

import gzip
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from stabledllm.config.settings import DataSettings
from stabledllm.data import bundle as bundle_module
from stabledllm.data import data_key, row_cache, row_store, worker_pool
from stabledllm.data.bundle import choose, load_bundle, load_rows
from stabledllm.data.chosen import Chosen
from stabledllm.data.row_store import StoredRows, sound_parts
from stabledllm.data.rows import maskable_sizes
from stabledllm.data.token_rows import lengths_of
from stabledllm.errors import UserError
from stabledllm.models.byte_tokenizer import ByteTokenizer
from stabledllm.models.loading import load_model
from stabledllm.models.tokenizer_identity import identity_of
from stabledllm.noise.methods import Method
from stabledllm.runtime.folders import temporary_beside
from stabledllm.runtime.locks import waiting_for
from tests.fakes.hub_models import write_dream

TOKENIZER = ByteTokenizer()


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(row_cache, "PART", 16)


def conversations(path: Path, rows: int = 120, start: int = 0) -> Path:
    made = (
        {"prompt": f"What is {i}, `code` and 元?", "response": f"It is #### {i}" * (1 + i % 4)} for i in range(rows)
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in list(made)[start:]), encoding="utf-8")
    return path


def ids(path: Path) -> Path:
    rows = [{"input_ids": [i % 250, 7, i // 250, 9, 8][: 4 + i % 2], "prompt_length": 3} for i in range(120)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def documents(path: Path) -> Path:
    path.write_text("".join(json.dumps({"text": f"document {i} " * (1 + i % 7)}) + "\n" for i in range(60)))
    return path


def settings_of(train: str, **more) -> DataSettings:
    return DataSettings.model_validate({"train": train, "max_len": 70, **more})


def cached(settings: DataSettings, folder: Path, workers: int = 1) -> DataSettings:
    return settings.model_copy(update={"cache": str(folder), "workers": workers})


def refuse_reading(monkeypatch) -> None:
    def read(*args, **kwargs):
        raise AssertionError("the examples were read")

    monkeypatch.setattr(bundle_module, "load_examples", read)
    monkeypatch.setattr(row_cache, "encode_part", read)


@pytest.mark.parametrize(
    ("make", "kind", "more"),
    [
        (conversations, "jsonl", {"system_prompt": "Be brief.", "few_shot": 1, "train_rows": 60, "max_len": 400}),
        (conversations, "jsonl", {}),
        (ids, "jsonl", {}),
        (documents, "text", {"max_len": 32, "short_share": 0.3, "train_rows": 50}),
    ],
    ids=["prompted", "conversations", "ids", "documents"],
)
def test_rows_are_those_of_memory_and_a_second_start_reads_no_example(tmp_path, monkeypatch, make, kind, more):
    settings = settings_of(f"{kind}:{make(tmp_path / 'd.jsonl')}", **more)
    plain = load_bundle(settings, TOKENIZER)
    for again in (False, True):
        if again:
            refuse_reading(monkeypatch)
        found = load_bundle(cached(settings, tmp_path / "c"), TOKENIZER)
        assert isinstance(found.train, StoredRows)
        assert not isinstance(plain.train, StoredRows)
        for name in ("train", "validation", "test", "notes", "digests"):
            assert getattr(found, name) == getattr(plain, name)
        assert lengths_of(found.train) == lengths_of(plain.train)
        assert maskable_sizes(found.train, Method()).equal(maskable_sizes(plain.train, Method()))
        some = found.train[3:9]
        assert pickle.loads(pickle.dumps(some)) == some == plain.train[3:9]
        assert found.train.holding(9) == plain.train.holding(9)
        assert choose(cached(settings, tmp_path / "c")).digests == plain.digests


def test_a_pickle_of_rows_is_small_and_opens_the_files(tmp_path):
    rows = load_bundle(
        cached(settings_of(f"jsonl:{conversations(tmp_path / 'd.jsonl')}"), tmp_path / "c"), TOKENIZER
    ).train
    assert len(pickle.dumps(rows)) < 1000
    next(tmp_path.glob("c/rows/*/train-*/input_ids.values")).write_bytes(b"")
    with pytest.raises(UserError, match=r"input_ids\.values: expected a file of the cache .* gone or shorter"):
        pickle.loads(pickle.dumps(rows))


def test_fit_and_decompose_read_the_cache(tmp_path, monkeypatch):
    settings = settings_of(f"jsonl:{conversations(tmp_path / 'd.jsonl')}")
    plain = load_rows(settings.train, TOKENIZER, settings, "train", None)
    kept = cached(settings, tmp_path / "c")
    said: list[str] = []
    assert load_rows(settings.train, TOKENIZER, kept, "train", None, said.append) == plain
    assert "rows-train: tokenised into" in said[0]
    other = f"jsonl:{ids(tmp_path / 'other.jsonl')}"
    assert load_rows(other, TOKENIZER, kept, "train", None) == load_rows(other, TOKENIZER, settings, "train", None)
    few = load_rows(settings.train, TOKENIZER, kept, "train", 20)
    assert few == load_rows(settings.train, TOKENIZER, settings, "train", 20)
    refuse_reading(monkeypatch)
    assert load_rows(settings.train, TOKENIZER, kept, "train", None) == plain


@pytest.mark.parametrize("name", ["input_ids.values", "input_ids.ends", "origin.values", "counts", "parts.jsonl"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_damage_is_found_and_what_is_whole_is_kept(tmp_path, name, damage):
    settings = cached(settings_of(f"jsonl:{conversations(tmp_path / 'd.jsonl')}"), tmp_path / "c")
    sound = list(load_bundle(settings, TOKENIZER).train)
    (home,) = tmp_path.glob("c/rows/*/train-*")
    content = bytearray((home / name).read_bytes())
    whole = len(sound_parts(home))
    middle = len(content) // 2
    if damage == "gone":
        (home / name).unlink()
    else:
        content[middle] ^= 4
        (home / name).write_bytes(content if damage == "flipped" else content[:middle])
    kept = len(sound_parts(home))
    assert (kept == 0) if damage == "gone" else (0 < kept < whole)
    assert load_bundle(settings, TOKENIZER).train == sound
    assert len(sound_parts(home)) == whole


def test_a_damaged_choice_is_made_again(tmp_path):
    settings = cached(settings_of(f"jsonl:{conversations(tmp_path / 'd.jsonl')}"), tmp_path / "c")
    digests = load_bundle(settings, TOKENIZER).digests
    (choice,) = tmp_path.glob("c/rows/*/choice.json")
    content = choice.read_bytes()
    choice.write_bytes(content.replace(digests["train"].encode(), b"0" * 32))
    assert choose(settings).digests == digests
    assert choice.read_bytes() == content


@pytest.mark.parametrize("make", [conversations, documents])
def test_an_interrupted_start_is_continued(tmp_path, monkeypatch, make):
    kind = "text" if make is documents else "jsonl"
    settings = settings_of(f"{kind}:{make(tmp_path / 'd.jsonl')}", **({"max_len": 32} if make is documents else {}))
    plain, kept = load_bundle(settings, TOKENIZER).train, cached(settings, tmp_path / "c")
    append, calls = row_cache.StoreWriter.append, []

    def interrupted(*args, **kwargs):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        append(*args, **kwargs)

    monkeypatch.setattr(row_cache.StoreWriter, "append", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_bundle(kept, TOKENIZER)
    (home,) = tmp_path.glob("c/rows/*/train-*")
    with (home / "input_ids.values").open("ab") as file:
        file.write(b"half a part")  # what a kill in the middle of one leaves
    leftover = temporary_beside(home / "counts")  # of a repair that was killed
    leftover.write_bytes(b"")
    said, before = [], (home / "input_ids.values").stat().st_ino
    assert load_bundle(kept, TOKENIZER, said.append).train == plain
    assert "are whole; the rest is tokenised" in said[0]
    assert (home / "input_ids.values").stat().st_ino == before
    assert not leftover.exists()


@pytest.mark.parametrize("change", ["file", "setting", "tokenizer", "code"])
def test_whatever_decides_the_rows_is_in_the_key(tmp_path, monkeypatch, change):
    path = conversations(tmp_path / "d.jsonl")
    settings, tokenizer = cached(settings_of(f"jsonl:{path}"), tmp_path / "c"), TOKENIZER
    load_bundle(settings, tokenizer)
    stores = set(tmp_path.glob("c/rows/*/train-*"))
    if change == "file":
        state = path.stat()
        path.write_bytes(path.read_bytes().replace(b"It is", b"It's "))
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    elif change == "setting":
        settings = settings.model_copy(update={"max_len": 60})
    elif change == "tokenizer":
        tokenizer = type("Other", (ByteTokenizer,), {"identity": "other"})()
    else:
        monkeypatch.setattr("stabledllm.data.data_key._code_digest", lambda: "another version")
    load_bundle(settings, tokenizer)
    assert len(set(tmp_path.glob("c/rows/*/train-*")) - stores) == 1


@pytest.mark.parametrize("package", ["data", "tasks", "models", "noise"])
def test_the_code_that_makes_rows_is_in_the_key(tmp_path, monkeypatch, package):
    (tmp_path / package / "below").mkdir(parents=True)
    monkeypatch.setattr("stabledllm.__file__", str(tmp_path / "__init__.py"))
    before = data_key._code_digest.__wrapped__()
    (tmp_path / package / "below" / "code.py").write_text("1")
    assert data_key._code_digest.__wrapped__() != before


def test_a_file_that_changes_between_choice_and_rows_poisons_nothing(tmp_path):
    path = tmp_path / "d.jsonl.gz"

    def write(word: str) -> None:
        rows = ({"prompt": f"What is {word} {i}?", "response": f"#### {i}"} for i in range(120))
        path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))

    write("old")
    settings = cached(settings_of(str(path)), tmp_path / "c")
    chosen = choose(settings)
    write("new")
    with pytest.raises(UserError, match=r"d\.jsonl\.gz: expected a file that stays as it is"):
        load_bundle(settings, TOKENIZER, chosen=chosen)
    plain = load_bundle(settings_of(str(path)), TOKENIZER)
    assert load_bundle(settings, TOKENIZER).train == plain.train


def test_a_file_that_changes_while_it_is_chosen_from_is_refused(tmp_path, monkeypatch):
    path = conversations(tmp_path / "d.jsonl")
    choose_now = bundle_module._choose

    def meddled(settings):
        chosen = choose_now(settings)
        os.utime(path, ns=(1, 1))
        return chosen

    monkeypatch.setattr(bundle_module, "_choose", meddled)
    with pytest.raises(UserError, match=r"d\.jsonl: expected a file that stays as it is"):
        choose(cached(settings_of(f"jsonl:{path}"), tmp_path / "c"))
    assert not list(tmp_path.glob("c/rows/*/choice.json"))


def test_the_tables_beside_a_file_of_hitab_are_in_the_key(tmp_path):
    (tmp_path / "tables" / "raw").mkdir(parents=True)
    file, table = tmp_path / "train_samples.jsonl", tmp_path / "tables" / "raw" / "1.json"
    file.write_text("{}\n")
    table.write_text("{}")
    settings = settings_of(f"hitab:{file}", cache=str(tmp_path / "c"))
    assert [state.path for state in row_cache.cache_of(settings, None).files] == [str(table), str(file)]


def test_whole_rows_are_read_where_nothing_can_be_written(tmp_path, monkeypatch):
    path = conversations(tmp_path / "d.jsonl")
    settings = cached(settings_of(f"jsonl:{path}"), tmp_path / "c")
    sound = load_bundle(settings, TOKENIZER)

    def refuse(folder):
        raise UserError(f"{folder}: expected a file system that can be written, found one that is read-only.")

    monkeypatch.setattr(row_cache, "writable_folder", refuse)
    assert load_bundle(settings, TOKENIZER) == sound
    with pytest.raises(UserError, match=r"found one that is read-only\. .*data\.cache=FOLDER names another"):
        load_bundle(settings.model_copy(update={"max_len": 60}), TOKENIZER)


@pytest.mark.parametrize("damage", ["flipped", "gone"])
def test_rows_in_use_outlive_the_repair_and_the_end_of_their_store(tmp_path, damage):
    settings = cached(settings_of(f"jsonl:{conversations(tmp_path / 'd.jsonl')}"), tmp_path / "c")
    rows = load_bundle(settings, TOKENIZER).train
    sound, (home,) = list(rows), tmp_path.glob("c/rows/*/train-*")
    lines = (home / "parts.jsonl").read_bytes().splitlines(keepends=True)
    other = b"1" if lines[1].startswith(b"0") else b"0"  # the line begins with a digest that depends on the path
    (home / "parts.jsonl").write_bytes(b"".join([lines[0], other + lines[1][1:], *lines[2:]]))
    if damage == "gone":
        (home / "parts.jsonl").unlink()
    with row_store.StoreWriter(home, "uint16") as store:
        assert len(store.parts) == (0 if damage == "gone" else 1)
    assert list(rows) == sound, "whoever reads them is not cut off"
    shutil.rmtree(home)
    assert list(rows[3:9]) == sound[3:9]
    with pytest.raises(UserError, match=r"expected a store of tokenised rows, found it gone; start again"):
        pickle.loads(pickle.dumps(rows))


def test_a_file_that_changes_meanwhile_is_refused_and_nothing_completed(tmp_path, monkeypatch):
    path = conversations(tmp_path / "d.jsonl")
    settings = cached(settings_of(f"jsonl:{path}"), tmp_path / "c")
    append = row_cache.StoreWriter.append

    def meddled(*args, **kwargs):
        os.utime(path, ns=(1, 1))
        append(*args, **kwargs)

    monkeypatch.setattr(row_cache.StoreWriter, "append", meddled)
    with pytest.raises(UserError, match=r"d\.jsonl: expected a file that stays as it is"):
        load_bundle(settings, TOKENIZER)
    (home,) = tmp_path.glob("c/rows/*/train-*")
    assert not row_cache.is_complete(sound_parts(home))


def test_where_rows_stay_in_memory(tmp_path, monkeypatch):
    monkeypatch.setenv("STABLEDLLM_CACHE", str(tmp_path / "own"))
    path = conversations(tmp_path / "d.jsonl")
    nameless = type("Nameless", (ByteTokenizer,), {"identity": None})()
    for settings, tokenizer in (
        (settings_of(f"jsonl:{path}"), TOKENIZER),
        (settings_of("synthetic:easy", train_rows=50, cache=str(tmp_path / "own")), TOKENIZER),
        (settings_of(f"jsonl:{path}", cache=str(tmp_path / "own")), nameless),
    ):
        assert not isinstance(load_bundle(settings, tokenizer).train, StoredRows)
    assert not list(tmp_path.glob("own/rows/*/train-*"))
    assert row_cache.cache_of(settings_of(f"jsonl:{path}", test="scenes", cache=str(tmp_path)), None) is None
    monkeypatch.setattr(row_cache, "IN_MEMORY", path.stat().st_size)
    assert isinstance(load_bundle(settings_of(f"jsonl:{path}"), TOKENIZER).train, StoredRows)
    assert list(tmp_path.glob("own/rows/*/train-*"))


def test_test_data_without_a_file_count_by_content(tmp_path):
    path = conversations(tmp_path / "d.jsonl")
    settings = cached(settings_of(f"jsonl:{path}", test="synthetic:easy", test_rows=5), tmp_path / "c")
    assert load_bundle(settings, TOKENIZER).test == load_bundle(settings, TOKENIZER).test != []
    load_bundle(settings.model_copy(update={"test_rows": 6}), TOKENIZER)
    assert len(list(tmp_path.glob("c/rows/*"))) == 2


def test_a_choice_that_json_does_not_give_back_is_not_stored(tmp_path):
    cache = row_cache.RowCache(tmp_path / "rows" / "key", (), 1)
    chosen = Chosen([{"gold": (1, 2)}], [], {}, dict)
    for _ in range(2):
        assert cache.chosen("choice", lambda: chosen).test == [{"gold": (1, 2)}]
    assert not list(tmp_path.rglob("choice.json"))


def test_ids_of_a_large_vocabulary_take_four_bytes(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps({"input_ids": [i, 69_999], "prompt_length": 1}) + "\n" for i in range(40)))
    wide = type("Wide", (ByteTokenizer,), {"identity": "wide", "vocab_size": 70_000})()
    rows = load_bundle(cached(settings_of(f"jsonl:{path}"), tmp_path / "c"), wide).train
    assert {row.input_ids[1] for row in rows} == {69_999}


def test_a_row_that_cannot_be_encoded_is_named(tmp_path):
    path = conversations(tmp_path / "d.jsonl")
    settings = cached(settings_of(f"jsonl:{path}", over_length="refuse", max_len=40), tmp_path / "c")
    with pytest.raises(UserError, match=r"d\.jsonl:\d+: expected at most max_len=40 tokens"):
        load_bundle(settings, TOKENIZER)
    settings = cached(settings_of(f"jsonl:{path}", max_len=4), tmp_path / "c")
    for _ in range(2):
        with pytest.raises(UserError, match="at least one row of at most max_len=4 tokens, found none"):
            load_bundle(settings, TOKENIZER)


def test_a_checkpoints_tokenizer_is_known_by_all_that_decides_ids_and_goes_to_processes(tmp_path):
    folder = write_dream(tmp_path / "dream")
    tokenizer = load_model(str(folder)).tokenizer
    copy = pickle.loads(pickle.dumps(tokenizer))
    messages = [{"role": "user", "content": "Why <|im_end|>?"}, {"role": "assistant", "content": "So."}]
    assert copy.chat(messages[:1]) == tokenizer.chat(messages[:1])
    assert copy.identity == tokenizer.identity == load_model(str(folder)).tokenizer.identity
    backend = tokenizer._tokenizer
    known = {identity_of(backend, [1]), identity_of(backend, [2])}
    backend.sep_token = backend.eos_token
    known.add(identity_of(backend, [1]))
    backend.add_tokens(["a whole word"])
    known.add(identity_of(backend, [1]))
    assert len(known) == 4
    backend.chat_template += " "
    assert identity_of(backend, [1]) != identity_of(copy._tokenizer, [1])
    backend.__class__ = type("Foreign", (type(backend),), {"__module__": "theirs"})
    assert identity_of(backend, [1]) is None


def test_a_function_that_cannot_be_pickled_runs_here_and_says_so():
    said: list[str] = []
    parts = list(worker_pool.mapped(lambda part: sum(part), worker_pool.in_parts(range(5), 2), 2, said.append))
    assert parts == [([0, 1], 1), ([2, 3], 5), ([4], 4)]
    assert "cannot be sent" in said[0]


def test_a_process_that_may_start_none_tokenises_by_itself(monkeypatch):
    monkeypatch.setattr(multiprocessing, "current_process", lambda: SimpleNamespace(daemon=True))
    monkeypatch.setattr(worker_pool, "ProcessPoolExecutor", None)
    assert list(worker_pool.mapped(sum, [[1, 2]], 2)) == [([1, 2], 3)]


def test_one_start_makes_the_rows_while_another_waits_and_says_so(tmp_path, monkeypatch):
    settings = settings_of(f"jsonl:{conversations(tmp_path / 'd.jsonl')}")
    kept, said = cached(settings, tmp_path / "c"), []
    plain = load_bundle(kept, TOKENIZER).train
    (home,) = tmp_path.glob("c/rows/*")
    choice, stored = home / "choice.json", (home / "choice.json").read_bytes()
    choice.unlink()
    with ThreadPoolExecutor(1) as other:
        refuse_reading(monkeypatch)
        with waiting_for(home / "rows.lock"):
            found = other.submit(load_bundle, kept, TOKENIZER, said.append)
            while not said:
                time.sleep(0.01)
            assert "waiting for another process" in said[0]
            assert not found.done()
            choice.write_bytes(stored)
        assert found.result().train == plain


@pytest.mark.long
@pytest.mark.processes
@pytest.mark.slow
def test_processes_make_the_same_rows(tmp_path):
    settings = settings_of(f"jsonl:{conversations(tmp_path / 'd.jsonl')}")
    kept = cached(settings, tmp_path / "c", workers=2)
    assert load_bundle(kept, TOKENIZER).train == load_bundle(settings, TOKENIZER).train


@pytest.mark.long
@pytest.mark.processes
@pytest.mark.slow
def test_workers_end_with_a_killed_parent_and_errors_come_in_order(tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(
        "import os, time\n"
        "from stabledllm.data.worker_pool import mapped\n"
        "def work(part):\n"
        "    print(os.getpid(), flush=True)\n"
        "    time.sleep(60)\n"
        "if __name__ == '__main__':\n"
        "    list(mapped(work, [[1], [2]], 2))\n"
    )
    killed = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    pids = [int(killed.stdout.readline()) for _ in range(2)]
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    for _ in range(100):
        if not any(Path(f"/proc/{pid}").exists() for pid in pids):
            break
        time.sleep(0.1)
    else:
        raise AssertionError("a worker outlived its parent")
    with pytest.raises(UserError, match="row 2"):
        list(worker_pool.mapped(_refuse_two, worker_pool.in_parts(range(6), 1), 2))
    with pytest.raises(UserError, match="to run to their end, found one that ended before"):
        list(worker_pool.mapped(os._exit, [1, 2], 2))


def _refuse_two(part: list) -> list:
    if part[0] >= 2:
        raise UserError(f"row {part[0]}: bad")
    return part
