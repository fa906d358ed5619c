"""Codes are made once, whatever interrupts it, and what is wrong with a cache is said in one sentence."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stabledllm.errors import UserError
from stabledllm.images import image as decoding
from stabledllm.images import sources
from stabledllm.images.cache import cached_codes
from stabledllm.images.cache_record import PartRecord, record_of
from stabledllm.images.codes import Codes, open_codes
from stabledllm.images.sources import fingerprint
from tests.fakes.images import SIDE, Patches, encoded, pairs, picture, samples, shard

ROOT = Path(__file__).parents[2]


def codes_of(spec: str, folder: Path, tokenizer: Patches | None = None, **options) -> Codes:
    """Small parts and batches, unless told otherwise."""
    settings = {"split": "train", "rows": None, "seed": 0, "side": SIDE, "fit": "refuse", "on_bad": "refuse"}
    settings |= {"part": 8, "batch": 4} | options
    return cached_codes(spec, tokenizer or Patches(), folder=folder, **settings)


def content(codes: Codes) -> tuple[list[str], list[str], list[list[int]]]:
    return codes.captions, codes.origins, [row.tolist() for row in codes.codes]


def home(folder: Path) -> Path:
    (found,) = (path for path in folder.iterdir() if path.is_dir())
    return found


@pytest.fixture
def decoded(monkeypatch):
    """How often each picture is decoded, by its file."""
    count = Counter()
    real = decoding.decode

    def decode(data: bytes, where: str) -> np.ndarray:
        count[Path(where).name] += 1
        return real(data, where)

    monkeypatch.setattr(decoding, "decode", decode)
    return count


@pytest.fixture
def spec(tmp_path):
    return f"images:{pairs(tmp_path / 'pictures', 21)}"


# What is made.


def test_codes_are_the_tokenizers(spec, tmp_path):
    codes = codes_of(spec, tmp_path / "c")
    expected = Patches().encode(np.stack([picture(i) for i in range(21)])).numpy()
    assert codes.captions == [f"picture {i}" for i in range(21)]
    assert codes.origins == [f"{i:02d}.png" for i in range(21)]
    assert len(codes) == len(codes.codes) == 21
    for i in (0, 7, 8, 20, -1):
        assert np.array_equal(codes.codes[i], expected[i])
        assert codes.codes[i].dtype == np.int64
    with pytest.raises(IndexError):
        codes.codes[21]
    assert (codes.side, codes.codebook_size, codes.tokenizer, codes.tokenizer_fingerprint) == (
        16,
        64,
        "patches",
        "f" * 64,
    )
    assert codes.dropped == []
    assert content(pickle.loads(pickle.dumps(codes))) == content(codes)


def test_the_folder_says_what_it_is(spec, tmp_path):
    codes_of(spec, tmp_path / "c")
    folder = home(tmp_path / "c")
    assert folder.name.startswith("images-all-")
    assert [np.load(folder / f"part-0000{i}.npy").shape for i in range(3)] == [(8, 16), (8, 16), (5, 16)]
    assert np.load(folder / "part-00000.npy").dtype == np.uint8
    said = json.loads((folder / "cache.json").read_text())
    assert said["schema"] == "stabledllm/codes/1"
    assert (said["side"], said["tokens"], said["fit"], said["complete"]) == (16, 16, "refuse", True)
    assert said["source"] == {"spec": spec, "fingerprint": fingerprint(spec), "split": None, "seed": None}
    assert said["parts"][2]["rows"] == 5
    for kind, end in (("codes", "npy"), ("captions", "jsonl")):
        assert said["parts"][2][kind] == hashlib.sha256((folder / f"part-00002.{end}").read_bytes()).hexdigest()


def test_a_large_codebook_takes_two_bytes(spec, tmp_path):
    tokenizer = Patches()
    tokenizer.codebook_size = 257
    codes_of(spec, tmp_path, tokenizer, rows=2)
    (file,) = tmp_path.glob("images-*/part-00000.npy")
    assert np.load(file).dtype == np.uint16


def test_what_decides_the_codes_names_the_folder(spec, tmp_path):
    def name(of: str = spec, tokenizer: Patches | None = None, **options) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        codes_of(of, folder, tokenizer, rows=1, **options)
        return home(folder).name

    base = name()
    assert name(seed=1, split="validation", part=1, batch=1, on_bad="drop") == base, "nothing of this changes the codes"
    moved = shutil.copytree(tmp_path / "pictures", tmp_path / "moved")
    assert name(f"images:{moved}") == base
    others = [name(tokenizer=Patches("e" * 64)), name(fit="crop"), name(side=8, fit="crop")]
    scenes = [name("scenes", fit="crop", seed=seed, split=split) for seed in (0, 1) for split in ("train", "test")]
    (moved / "20.txt").write_text("another\n")
    assert len({base, *others, *scenes, name(f"images:{moved}")}) == 9
    assert scenes[1].startswith("scenes-test-")


def test_scenes_have_no_end_but_a_number(tmp_path):
    assert len(codes_of("scenes", tmp_path, split="test", fit="crop")) == 128
    tokenizer = Patches()
    assert len(codes_of("scenes", tmp_path, tokenizer, split="test", fit="crop", rows=130)) == 130
    assert tokenizer.seen == 2


# Made once.


def test_what_is_cached_is_not_read_again(spec, tmp_path, decoded, monkeypatch):
    first = codes_of(spec, tmp_path / "c")
    assert set(decoded.values()) == {1}
    assert len(decoded) == 21
    decoded.clear()
    monkeypatch.setattr(sources.folders.Pairs, "items", lambda *_: pytest.fail("the source was read"))
    tokenizer = Patches()
    assert content(codes_of(spec, tmp_path / "c", tokenizer)) == content(first)
    assert content(codes_of(spec, tmp_path / "c", tokenizer, rows=5))[0] == first.captions[:5]
    assert len(codes_of(spec, tmp_path / "c", tokenizer, rows=500)) == 21
    assert not decoded
    assert tokenizer.seen == 0


def test_no_more_is_read_than_is_wanted(spec, tmp_path, decoded):
    codes_of(spec, tmp_path / "c", rows=6)
    assert sorted(decoded) == [f"{i:02d}.png" for i in range(6)]


@pytest.mark.parametrize("first", [1, 4, 8, 13, 20])
def test_a_shorter_cache_is_continued(spec, tmp_path, decoded, first):
    whole = codes_of(spec, tmp_path / "whole")
    decoded.clear()
    assert len(codes_of(spec, tmp_path / "c", rows=first)) == first
    done = []
    tokenizer = Patches()
    assert content(codes_of(spec, tmp_path / "c", tokenizer, progress=done.append)) == content(whole)
    assert tokenizer.seen == 21 - first
    assert set(decoded.values()) == {1}
    assert (done[0], sum(done)) == (first, 21)


@pytest.mark.parametrize("stop", [0, 4, 11, 20])
def test_an_interrupted_cache_is_continued(spec, tmp_path, stop):
    whole = codes_of(spec, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        codes_of(spec, tmp_path / "c", stopped := Patches(stop_after=stop))
    assert stopped.seen == stop - stop % 4
    tokenizer = Patches()
    assert content(codes_of(spec, tmp_path / "c", tokenizer)) == content(whole)
    assert tokenizer.seen == 21 - stopped.seen


def test_batches_are_cut_at_the_same_places_wherever_a_run_starts(spec, tmp_path):
    class Noting(Patches):
        def encode(self, pictures):
            codes = super().encode(pictures)
            batches.append(codes.numpy().tobytes())
            return codes

    batches: list[bytes] = []
    codes_of(spec, tmp_path / "whole", Noting(), part=3)
    undisturbed = batches.copy()
    batches.clear()
    with pytest.raises(KeyboardInterrupt):
        codes_of(spec, tmp_path / "c", Noting(stop_after=9), part=3)
    codes_of(spec, tmp_path / "c", Noting(), part=3)
    assert batches == undisturbed
    batches.clear()
    codes_of(spec, tmp_path / "d", Noting(), rows=6)
    codes_of(spec, tmp_path / "d", Noting())
    assert batches[3:] == undisturbed[2:], "one batch was cut in two, those after it were not"


def test_a_kill_between_a_part_and_its_record(spec, tmp_path):
    whole = codes_of(spec, tmp_path / "whole")
    codes_of(spec, tmp_path / "c", rows=8)
    record = home(tmp_path / "c") / "cache.json"
    before = record.read_bytes()
    codes_of(spec, tmp_path / "c", rows=12)
    record.write_bytes(before)
    tokenizer = Patches()
    assert content(codes_of(spec, tmp_path / "c", tokenizer)) == content(whole)
    assert tokenizer.seen == 13


SCRIPT = """
import sys, time
from pathlib import Path
from tests.fakes.images import Patches
from tests.images.test_cache import codes_of, content
class Slow(Patches):
    def encode(self, pictures):
        time.sleep(0.05)
        return super().encode(pictures)
tokenizer = Slow()
print("ready", flush=True)
sys.stdin.readline()
codes = codes_of(sys.argv[1], Path(sys.argv[2]), tokenizer)
print(tokenizer.seen, len(codes))
"""


@pytest.mark.long
@pytest.mark.processes
def test_two_processes_make_it_once(spec, tmp_path):
    command = [sys.executable, "-c", SCRIPT, spec, str(tmp_path / "c")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    running = [subprocess.Popen(command, **pipes) for _ in range(2)]
    assert [process.stdout.readline() for process in running] == ["ready\n"] * 2
    for process in running:
        process.stdin.write("go\n")
        process.stdin.flush()
    found = sorted(process.communicate(timeout=60)[0].split() for process in running)
    assert found == [["0", "21"], ["21", "21"]]


# Bad pictures.


def spoil(tmp_path: Path, *numbers: int) -> None:
    for number in numbers:
        (tmp_path / "pictures" / f"{number:02d}.png").write_bytes(b"spoilt")


def test_a_bad_picture_is_refused_and_nothing_is_lost(spec, tmp_path, decoded):
    spoil(tmp_path, 10)
    with pytest.raises(
        UserError, match=r"10\.png: expected a JPEG, PNG or WebP picture, found 6 bytes that are none\.$"
    ):
        codes_of(spec, tmp_path / "c")
    assert record_of(home(tmp_path / "c")).rows == 10
    assert len(codes_of(spec, tmp_path / "c", Patches(stop_after=0), rows=10)) == 10
    decoded.clear()
    tokenizer = Patches()
    codes = codes_of(spec, tmp_path / "c", tokenizer, on_bad="drop")
    assert len(codes) == tokenizer.seen + 10 == 20
    assert not {f"{i:02d}.png" for i in range(10)} & set(decoded)


def test_bad_pictures_are_dropped_and_recorded(spec, tmp_path, decoded):
    spoil(tmp_path, 0, 9, 20)
    (tmp_path / "pictures" / "05.txt").write_text("  \n")
    (tmp_path / "pictures" / "06.png").write_bytes(encoded(picture(6, 16, 17)))
    codes = codes_of(spec, tmp_path / "c", on_bad="drop")
    assert codes.captions == [f"picture {i}" for i in range(21) if i not in (0, 5, 6, 9, 20)]
    assert [each.origin for each in codes.dropped] == ["00.png", "05.png", "06.png", "09.png", "20.png"]
    assert codes.dropped[1].reason.endswith("05.txt: expected a caption, found an empty one.")
    assert codes.dropped[2].reason == "06.png: expected a picture of 16 x 16 pixels, found 17 x 16."
    expected = Patches().encode(picture(19)[None])[0].numpy()
    assert np.array_equal(codes.codes[15], expected)
    decoded.clear()
    assert content(codes_of(spec, tmp_path / "c", on_bad="drop")) == content(codes)
    assert not decoded
    with pytest.raises(UserError, match=r"00\.png: expected a JPEG"):
        codes_of(spec, tmp_path / "c")


def test_dropping_survives_an_interrupt(spec, tmp_path, decoded):
    spoil(tmp_path, 0, 9, 10, 20)
    whole = codes_of(spec, tmp_path / "whole", on_bad="drop")
    decoded.clear()
    assert len(codes_of(spec, tmp_path / "c", on_bad="drop", rows=8)) == 8
    assert [each.origin for each in open_codes(home(tmp_path / "c")).dropped] == ["00.png"]
    for stop in (3, 4):
        with pytest.raises(KeyboardInterrupt):
            codes_of(spec, tmp_path / "c", Patches(stop_after=stop), on_bad="drop")
    codes = codes_of(spec, tmp_path / "c", on_bad="drop")
    assert content(codes) == content(whole)
    assert codes.dropped == whole.dropped
    assert {name for name, n in decoded.items() if n > 1} <= {f"{i:02d}.png" for i in range(11, 20)}, (
        "of batches cut off"
    )


def test_what_was_dropped_counts_from_its_row_on(spec, tmp_path, decoded):
    spoil(tmp_path, 10, 20)
    whole = codes_of(spec, tmp_path / "c", on_bad="drop")
    assert len(codes_of(spec, tmp_path / "c", rows=10)) == 10
    with pytest.raises(UserError, match=r"10\.png: expected a JPEG"):
        codes_of(spec, tmp_path / "c", rows=11)
    assert [each.origin for each in codes_of(spec, tmp_path / "c", rows=11, on_bad="drop").dropped] == ["10.png"]
    (home(tmp_path / "c") / "part-00002.npy").unlink()
    decoded.clear()
    assert codes_of(spec, tmp_path / "c", on_bad="drop").dropped == whole.dropped
    assert decoded.keys() == {f"{i:02d}.png" for i in (17, 18, 19, 20)}, "with the part, what it left out is tried anew"


def test_nothing_good_is_an_error(spec, tmp_path):
    spoil(tmp_path, *range(21))
    for _ in range(2):
        with pytest.raises(UserError, match=r"expected at least one good picture, found none \(the first: .*00\.png: "):
            codes_of(spec, tmp_path / "c", on_bad="drop")
    (tmp_path / "a.txt").write_text("x\n")
    with pytest.raises(UserError, match="expected pictures, found captions alone"):
        codes_of(f"captions:{tmp_path / 'a.txt'}", tmp_path / "c")
    empty = shard(tmp_path / "a.tar", {})
    with pytest.raises(UserError, match="expected at least one picture of split 'train', found none"):
        codes_of(f"text-to-image-2m:{empty}", tmp_path / "d")


def test_a_source_that_breaks_off_keeps_what_precedes(tmp_path):
    path = shard(tmp_path / "a.tar", samples(range(12)))
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        path.write_bytes(whole[: tar.getmember("0006.png").offset])
    with pytest.raises(UserError, match="expected a whole, uncompressed tar archive"):
        codes_of(f"text-to-image-2m:{path}", tmp_path / "c", on_bad="drop")
    assert record_of(home(tmp_path / "c")).rows == 5, "the sixth may have had more members"


# What is wrong with a tokenizer or a cache.


def test_a_code_outside_the_codebook_is_named(spec, tmp_path):
    tokenizer = Patches()
    tokenizer.codebook_size = 60
    (tmp_path / "pictures" / "13.png").write_bytes(encoded(np.full((16, 16, 3), 255, np.uint8)))
    with pytest.raises(UserError, match=r"'patches': 13\.png: expected codes in \[0, 60\), found 63\.$"):
        codes_of(spec, tmp_path / "c", tokenizer)
    codes_of(spec, tmp_path / "d")
    folder = home(tmp_path / "d")
    record = record_of(folder)
    file = folder / "part-00001.npy"
    codes = np.load(file)
    codes[3, 2] = 64
    np.save(file, codes)
    parts = list(record.parts)
    parts[1] = PartRecord(8, hashlib.sha256(file.read_bytes()).hexdigest(), parts[1].captions)
    replace(record, parts=tuple(parts)).write(folder)
    with pytest.raises(UserError, match=rf"^{file}: row 3: expected codes in \[0, 64\), found 64\.$"):
        open_codes(folder)


def test_a_side_that_does_not_divide(spec, tmp_path):
    with pytest.raises(UserError, match=r"tokenizer 'patches': expected a side that 4 divides, found 18\.$"):
        codes_of(spec, tmp_path / "c", side=18)


def test_codes_alone(spec, tmp_path):
    whole = codes_of(spec, tmp_path / "c")
    folder = home(tmp_path / "c")
    shutil.rmtree(tmp_path / "pictures")
    assert content(open_codes(folder)) == content(whole)
    assert content(open_codes(folder, Patches(), 9))[0] == whole.captions[:9]
    assert content(codes_of(f"codes:{folder}", tmp_path / "no", rows=9))[0] == whole.captions[:9]
    assert len(fingerprint(f"codes:{folder}")) == 64
    with pytest.raises(
        UserError, match=r"expected codes of the tokenizer 'patches' \(eeeeeeeeeeee\), found those of 'patches' \(f"
    ):
        open_codes(folder, Patches("e" * 64))
    with pytest.raises(UserError, match=r"expected codes of pictures of 8 pixels, found 16 pixels"):
        codes_of(f"codes:{folder}", tmp_path / "no", side=8)
    with pytest.raises(UserError, match=r"cache\.json: expected a file, found nothing"):
        open_codes(tmp_path / "no")


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda said: said.pop("tokens"), r"expected what a cache of codes says of itself, found it broken"),
        (lambda said: said.update(codebook_size="64"), r"found it broken \(a size that is no positive number\)"),
        (lambda said: said.update(source={}), r"found it broken \(a source of other keys\)"),
        (lambda said: said.update(schema="x"), r"expected schema 'stabledllm/codes/1', found 'x'"),
        (lambda said: said.update(tokens=17), r"npy: expected uint8 of shape \(8, 17\), found uint8 of .*16\)"),
        (lambda said: said.update(parts=[]), r"expected the codes of at least one picture, found none"),
    ],
)  # fmt: skip
def test_a_broken_record(spec, tmp_path, damage, sentence):
    codes_of(spec, tmp_path / "c")
    path = home(tmp_path / "c") / "cache.json"
    said = json.loads(path.read_text())
    damage(said)
    path.write_text(json.dumps(said))
    with pytest.raises(UserError, match=sentence):
        open_codes(path.parent)


@pytest.mark.parametrize("end", ["npy", "jsonl"])
def test_a_wrong_part_is_refused_and_made_anew_when_deleted(spec, tmp_path, end):
    whole = codes_of(spec, tmp_path / "c")
    folder = home(tmp_path / "c")
    wrong = folder / f"part-00001.{end}"
    wrong.write_bytes(wrong.read_bytes()[:-1] + b"?")
    for spoilt in (lambda: codes_of(spec, tmp_path / "c"), lambda: open_codes(folder)):
        with pytest.raises(
            UserError, match=rf"^{wrong}: expected what cache.json has the checksum of, found other .*anew\.$"
        ):
            spoilt()
    assert len(codes_of(spec, tmp_path / "c", rows=8)) == 8, "a part that is not used is not read"
    wrong.unlink()
    for spoilt in (lambda: codes_of(spec, tmp_path / "c"), lambda: open_codes(folder)):
        with pytest.raises(
            UserError, match=rf"^{wrong}: expected a part of the cache, found nothing; deleting the parts after"
        ):
            spoilt()
    (folder / f"part-00002.{end}").unlink()
    tokenizer = Patches()
    assert content(codes_of(spec, tmp_path / "c", tokenizer)) == content(whole)
    assert tokenizer.seen == 13


def test_a_wrong_part_is_refused_before_it_is_continued(spec, tmp_path):
    codes_of(spec, tmp_path / "c", rows=16)
    wrong = home(tmp_path / "c") / "part-00000.jsonl"
    wrong.write_text(wrong.read_text().replace("picture 3", "picture 4"))
    with pytest.raises(UserError, match=rf"^{wrong}: expected what cache.json has the checksum of"):
        codes_of(spec, tmp_path / "c", tokenizer := Patches())
    assert tokenizer.seen == 0


def test_a_source_in_another_order_is_refused(tmp_path):
    members = samples(range(12))
    path = shard(tmp_path / "a.tar", members)
    codes_of(f"text-to-image-2m:{path}", tmp_path / "c", rows=6)
    turned = {name: members[name] for name in sorted(members, key=lambda name: -int(name[:4]))}
    shard(path, turned)  # of the same name and size
    with pytest.raises(
        UserError, match=r"expected 'a\.tar:0000' .* as row 0 of the source, found 'a\.tar:0011' there; del"
    ):
        codes_of(f"text-to-image-2m:{path}", tmp_path / "c")
    shard(path, members | {"0002.json": b'{"prompt": "picture X"}'})
    with pytest.raises(UserError, match="as row 2 of the source"):
        codes_of(f"text-to-image-2m:{path}", tmp_path / "c")
