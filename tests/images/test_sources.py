"""Every kind of source gives its pictures in one order, decodes none before it is read, and says what is amiss."""

from __future__ import annotations

import gzip
import json
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stabledllm.errors import UserError
from stabledllm.images import hub, scenes, shards
from stabledllm.images import image as decoding
from stabledllm.images.sources import IMAGE_KINDS, captioned_images, fingerprint, own_splits
from tests.fakes.images import encoded, pairs, picture, samples, shard


def all_of(spec: str, split: str = "train", rows: int | None = None, seed: int = 0) -> list:
    return list(captioned_images(spec, split=split, rows=rows, seed=seed))


def refused(spec: str, sentence: str, split: str = "train") -> None:
    """One sentence, whether the pictures or their captions are amiss."""
    with pytest.raises(UserError, match=sentence) as error:
        [each.read() for each in all_of(spec, split)]
    assert str(error.value).endswith(".")
    assert "\n" not in str(error.value)


@pytest.fixture
def undecoded(monkeypatch):
    """Counts what is decoded."""
    count = Counter()
    real = decoding.decode

    def decode(data: bytes, where: str) -> np.ndarray:
        count["decoded"] += 1
        return real(data, where)

    monkeypatch.setattr(decoding, "decode", decode)
    return count


# What there is.


def test_scenes_are_the_embedded_tasks_and_have_a_number_of_their_own():
    found = all_of("scenes", "validation", seed=3)
    assert len(found) == 256
    assert (len(all_of("scenes", "test")), len(all_of("scenes", "train", rows=7))) == (128, 7)
    for i in (0, 255):
        wanted = scenes.scene("validation", 3, i)
        assert (found[i].caption, found[i].origin) == (str(wanted), f"scenes validation row {i}")
        assert np.array_equal(found[i].read(), scenes.draw(wanted, 3 + i))
    assert all_of("scenes", rows=4, seed=1)[0].caption != all_of("scenes", rows=4, seed=2)[0].caption


def test_a_folder_of_pairs_is_sorted_and_searched_to_its_depth(tmp_path, undecoded):
    pairs(tmp_path / "b", 2)
    pairs(tmp_path / "a" / "deep", 1)
    (tmp_path / "a" / "00.JPG").write_bytes(encoded(picture(7), "JPEG"))
    (tmp_path / "a" / "00.txt").write_text("  upper case\n")
    (tmp_path / ".hidden.png").write_bytes(b"")
    found = all_of(f"images:{tmp_path}", "any split")
    assert [each.origin for each in found] == ["a/00.JPG", "a/deep/00.png", "b/00.png", "b/01.png"]
    assert [each.caption for each in found] == ["upper case", "picture 0", "picture 0", "picture 1"]
    assert not undecoded
    assert np.array_equal(found[3].read(), picture(1))
    assert undecoded == {"decoded": 1}


def test_a_jsonl_names_pictures_relative_to_itself(tmp_path):
    pairs(tmp_path / "files", 3)
    lines = [{"image": f"files/{i:02d}.png", "caption": f"number {i}", "more": 1} for i in (2, 0)]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    found = all_of(f"images:{tmp_path / 'rows.jsonl'}")
    assert [(each.caption, each.origin) for each in found] == [
        ("number 2", "rows.jsonl:1"),
        ("number 0", "rows.jsonl:2"),
    ]
    assert np.array_equal(found[0].read(), picture(2))
    assert len(all_of(f"images:{tmp_path / 'rows.jsonl'}", rows=1)) == 1


def test_the_hubs_folder_of_images(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "x.png").write_bytes(encoded(picture(5)))
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "train/x.png", "text": "an x"}\n')
    (found,) = all_of(f"images:{tmp_path}")
    assert (found.caption, found.origin) == ("an x", "metadata.jsonl:1")
    assert np.array_equal(found.read(), picture(5))


def test_captions_alone(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo words\n")
    (tmp_path / "a.jsonl").write_text('{"caption": "one"}\n\n{"caption": "two words", "n": 3}\n')
    for name, last in (("a.txt", 2), ("a.jsonl", 3)):
        found = all_of(f"captions:{tmp_path / name}")
        assert [each.caption for each in found] == ["one", "two words"]
        assert found[1].origin == f"{name}:{last}"
        with pytest.raises(UserError, match=rf"{name}:{last}: expected a picture, found a caption alone"):
            found[1].read()


def test_shards_are_read_in_the_order_of_their_names(tmp_path):
    shard(tmp_path / "b.tar", samples(range(5, 8)))
    extra = {"./x.jpg": encoded(picture(9), "JPEG"), "./x.TXT": b" from text\n", "./x.cls": b"3", "._y.png": b""}
    shard(
        tmp_path / "a" / "z.tar",
        extra | {"x/k.json": b'{"other": 1}', "x/k.txt": b"both", "x/k.png": encoded(picture(3))},
    )
    found = all_of(f"text-to-image-2m:{tmp_path}")
    assert [each.origin for each in found] == ["a/z.tar:x", "a/z.tar:x/k", *(f"b.tar:000{i}" for i in (5, 6, 7))]
    assert [each.caption for each in found] == ["from text", "both", "picture 5", "picture 6", "picture 7"]
    assert np.array_equal(found[3].read(), picture(6))
    assert [each.origin for each in all_of(f"text-to-image-2m:{tmp_path / 'b.tar'}")] == [
        "b.tar:0005",
        "b.tar:0006",
        "b.tar:0007",
    ]


def test_shards_splits_part_captions(tmp_path, monkeypatch):
    captions = [f"picture {i}" for i in range(20000)]
    share = Counter(shards.split_of(caption) for caption in captions)
    assert 5 <= share["test"] <= 45
    assert 5 <= share["validation"] <= 45
    monkeypatch.setattr(shards, "_BUCKETS", 4)
    twice = {"z.png": encoded(picture(1)), "z.txt": b"picture 1"}
    spec = f"text-to-image-2m:{shard(tmp_path / 'a.tar', samples(range(40)) | twice)}"
    by_split = {split: [each.caption for each in all_of(spec, split)] for split in own_splits(spec)}
    assert sum(map(len, by_split.values())) == 41
    assert all(by_split.values())
    sets = [set(found) for found in by_split.values()]
    assert sum(map(len, sets)) == len(set.union(*sets)) == 40


def test_a_shard_is_streamed(tmp_path, monkeypatch):
    members = {}
    for i in range(2000):
        members |= {f"{i}.png": b"x" * 4000, f"{i}.json": b'{"prompt": "p%d"}' % i}
    path = shard(tmp_path / "a.tar", members)
    read, kept = Counter(), []
    next_member = tarfile.TarFile.next

    class Counted:
        def __init__(self, file):
            self.file = file

        def read(self, size=-1):
            data = self.file.read(size)
            read["bytes"] += len(data)
            return data

        def __getattr__(self, name):
            return getattr(self.file, name)

    def following(tar):
        kept.append(len(tar.members))
        if not isinstance(tar.fileobj, Counted):
            tar.fileobj = Counted(tar.fileobj)
        return next_member(tar)

    monkeypatch.setattr(tarfile.TarFile, "next", following)
    spec = f"text-to-image-2m:{path}"
    first = next(captioned_images(spec, split="train", rows=None, seed=0))
    assert first.origin == "a.tar:0"
    assert read["bytes"] < 8000, "more than the first sample was read for the first picture"
    read.clear()
    assert len(all_of(spec)) > 1900
    assert read["bytes"] < 0.5 * path.stat().st_size, "pictures were read on the way"
    assert max(kept) <= 1, "the members of the shard are kept in memory"


# Pictures of every make.


def test_every_make_of_picture_becomes_rgb(tmp_path):
    grey = np.arange(16, dtype=np.uint8).reshape(4, 4) * 16
    three = np.stack([grey] * 3, -1)
    clear = np.dstack([three, np.where(grey < 128, 0, 255).astype(np.uint8)])
    palette = Image.fromarray(three).quantize(16)
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by a quarter, clockwise
    made = {
        "grey.png": (Image.fromarray(grey), {}, three),
        "deep.png": (Image.fromarray(grey.astype(np.uint16) * 256), {}, three),
        "clear.png": (Image.fromarray(clear), {}, np.where(clear[..., 3:] == 0, 255, three)),
        "palette.png": (palette, {}, three),
        "clear_palette.png": (palette, {"transparency": palette.getpixel((0, 0))}, None),
        "turned.png": (Image.fromarray(three), {"exif": turned}, np.rot90(three, -1)),
        "lossless.webp": (Image.fromarray(three), {"lossless": True}, three),
    }
    for name, (image, options, expected) in made.items():
        image.save(tmp_path / name, **options)
        found = decoding.read_file(tmp_path / name)
        assert found.dtype == np.uint8, name
        assert found.shape == (4, 4, 3), name
        if expected is not None:
            assert np.array_equal(found, expected), name
    assert decoding.read_file(tmp_path / "clear_palette.png")[0, 0].tolist() == [255, 255, 255]


# What is amiss.


def test_broken_pictures_are_named(tmp_path, monkeypatch):
    whole = encoded(picture(1, 64, 64), "JPEG")
    broken = {
        "corrupt.jpg": (whole[:4] + bytes(len(whole) - 4), "found a broken one|found [0-9]+ bytes that are none"),
        "cut.png": (encoded(picture(1))[:200], r"found a broken one \("),
        "cut.jpg": (whole[: len(whole) // 2], r"found a broken one \(image file is truncated"),
        "none.png": (b"hello", "found 5 bytes that are none"),
        "empty.webp": (b"", "found an empty file"),
    }
    for name, (content, found) in broken.items():
        folder = tmp_path / name.replace(".", "_")
        folder.mkdir()
        (folder / name).write_bytes(content)
        (folder / f"{name.partition('.')[0]}.txt").write_text("a caption")
        refused(f"images:{folder}", rf"^{folder / name}: expected a JPEG, PNG or WebP picture, ({found})")
        member = shard(tmp_path / "a.tar", {f"k{Path(name).suffix}": content, "k.txt": b"a caption"})
        refused(f"text-to-image-2m:{member}", rf"^{member}:k{Path(name).suffix}: expected a JPEG, .*({found})")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    (folder := tmp_path / "bomb").mkdir()
    pairs(folder, 1)
    refused(f"images:{folder}", r"00.png: expected .*, found a broken one \(Image size .* exceeds limit")


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({"a.png": b"", "a.txt": b" \n\t"}, r"a\.txt: expected a caption, found an empty one"),
        ({"a.png": b"", "a.txt": b"\xff"}, r"a\.txt: expected a caption in UTF-8, found a byte that is not"),
        ({"a.png": b""}, r"a\.png: expected a\.txt with its caption beside it, found none"),
        ({"a.txt": b"x"}, r"a\.txt: expected a\.jpg, \.jpeg, \.png or \.webp beside it, found none"),
        ({"a.png": b"", "a.jpg": b"", "a.txt": b"x"}, r"a: expected one picture, found a\.jpg, a\.png"),
        ({"b.gif": b""}, r"expected at least one picture, found none\.$"),
        ({"metadata.jsonl": b'{"file": "a.png"}'}, r"l:1: expected keys 'file_name' and 'text', found no 'file_name'"),
        ({"metadata.jsonl": b'{"file_name": "a.png", "text": "x"}'}, r"l:1: expected the picture .*a\.png, found no"),
        ({"metadata.jsonl": b'{"file_name": 3, "text": "x"}'}, r"l:1: expected text under 'file_name', found int"),
        ({"metadata.jsonl": b""}, r"metadata\.jsonl: expected at least one row, found an empty file"),
    ],
)  # fmt: skip
def test_folders_that_are_amiss(tmp_path, files, sentence):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    refused(f"images:{tmp_path}", sentence)


def test_a_picture_that_metadata_does_not_name(tmp_path):
    pairs(tmp_path, 2)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "00.png", "text": "x"}\n')
    refused(f"images:{tmp_path}", r"01\.png: expected a line of metadata\.jsonl with its caption, found none")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('{"image": "00.png"}', r"rows\.jsonl:1: expected keys 'image' and 'caption', found no 'caption'"),
        ('{"image": "00.png", "caption": "  "}', r"rows\.jsonl:1: expected a non-empty 'caption', found an empty one"),
        ('{"image": "no.png", "caption": "x"}', r"rows\.jsonl:1: expected the picture .*no\.png, found no such file"),
        ('{"image": "00.png", ', r"rows\.jsonl:1: expected a JSON object, found broken JSON"),
        ("[]", r"rows\.jsonl:1: expected a JSON object, found list"),
    ],
)
def test_lines_that_are_amiss(tmp_path, line, sentence):
    pairs(tmp_path, 1)
    (tmp_path / "rows.jsonl").write_text(line + "\n")
    refused(f"images:{tmp_path / 'rows.jsonl'}", sentence)


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        ({"k.png": b""}, r"a\.tar:k: expected a \.json or \.txt with the caption beside the picture, found none"),
        ({"k.json": b'{"prompt": "x"}'}, r"a\.tar:k: expected a picture \(\.jpg, .*\) beside the caption, found none"),
        ({"k.png": b"", "k.jpg": b"", "k.txt": b"x"}, r"a\.tar:k: expected one picture, found k\.png, k\.jpg"),
        ({"k.png": b"", "k.json": b"{"}, r"a\.tar:k\.json: expected a JSON object, found broken JSON"),
        ({"k.png": b"", "k.json": b"[]"}, r"a\.tar:k\.json: expected a JSON object, found list"),
        ({"k.png": b"", "k.json": b'{"text": "x"}'}, r"on: expected the caption under 'prompt', found keys \['text'\]"),
        ({"k.png": b"", "k.json": b'{"prompt": " "}'}, r"k\.json: expected a non-empty 'prompt', found an empty one"),
        ({"k.png": b"", "k.txt": b"\n"}, r"a\.tar:k\.txt: expected a caption, found an empty one"),
        ({}, r"expected at least one picture of split 'train', found none\.$"),
    ],
)  # fmt: skip
def test_members_that_are_amiss(tmp_path, members, sentence):
    refused(f"text-to-image-2m:{shard(tmp_path / 'a.tar', members)}", sentence)


def test_members_of_one_key_lie_together(tmp_path):
    both = samples(range(2))
    apart = {name: both[name] for name in sorted(both, key=lambda name: name[-3:])}  # all pictures, then all captions
    refused(f"text-to-image-2m:{shard(tmp_path / 'a.tar', apart)}", r"a\.tar:000\d: expected ")
    again = both | {"0000.txt": b"once more"}
    refused(
        f"text-to-image-2m:{shard(tmp_path / 'b.tar', again)}", r"b\.tar:0000: expected the members of a key one after"
    )


@pytest.mark.parametrize("cut", ["in a header", "between members", "in a picture", "not a tar", "compressed", "zeroed"])
def test_broken_shards_are_refused_and_never_end_early(tmp_path, cut):
    path = shard(tmp_path / "a.tar", samples(range(3)))
    content = path.read_bytes()
    with tarfile.open(path) as tar:
        last, third = tar.getmembers()[4], tar.getmembers()[2]
    broken = {
        "in a header": content[: third.offset + 100],
        "between members": content[: third.offset],
        "in a picture": content[: last.offset_data + 100],
        "not a tar": b"hello" * 1000,
        "compressed": gzip.compress(content),
        "zeroed": content[: third.offset] + b"\1" * 512 + content[third.offset + 512 :],
    }[cut]
    path.write_bytes(broken)
    refused(f"text-to-image-2m:{path}", rf"^{path}: expected a whole, uncompressed tar archive, found a broken one \(")


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("picture:x", r"unknown kind of pictures 'picture'"),
        ("images", r"expected images:PATH with local files, found no path"),
        ("text-to-image-2m:", r"expected text-to-image-2m:PATH with local files, found no path"),
        ("codes:x", r"expected pictures, found codes without pictures"),
        ("images:{0}/no", r"/no: expected a \.jsonl or a folder of pictures, found nothing"),
        ("images:{0}/file.csv", r"file\.csv: expected a \.jsonl or a folder of pictures, found another file"),
        ("captions:{0}/file.csv", r"file\.csv: expected a \.txt with one caption a line, or a \.jsonl, found another"),
        ("captions:{0}/blank.txt", r"blank\.txt:2: expected a caption, found an empty one"),
        ("text-to-image-2m:{0}/no", r"/no: expected a \.tar or a folder with some, found nothing"),
        ("text-to-image-2m:{0}", r": expected \.tar files in this folder or below it, found none"),
    ],
)
def test_specifications_that_are_amiss(tmp_path, spec, sentence):
    (tmp_path / "file.csv").write_text("x")
    (tmp_path / "blank.txt").write_text("one\n  \nthree\n")
    refused(spec.format(tmp_path), sentence)


def test_a_split_that_is_not_there():
    refused("scenes", r"^data 'scenes': expected a split of train, validation, test, found 'dev'\.$", split="dev")


def test_own_splits(tmp_path):
    shard(tmp_path / "a.tar", samples(range(1)))
    for spec in ("scenes", "text-to-image-2m", f"text-to-image-2m:{tmp_path}"):
        assert own_splits(spec) == ("train", "validation", "test")
    (tmp_path / "a.txt").write_text("x")
    for spec in (f"images:{tmp_path}", f"captions:{tmp_path / 'a.txt'}", "codes:x"):
        assert own_splits(spec) == ()
    assert set(IMAGE_KINDS) == {"scenes", "text-to-image-2m", "images", "captions", "codes"}


def test_a_fingerprint_changes_with_the_data_and_only_then(tmp_path):
    pairs(tmp_path / "p", 2)
    (tmp_path / "p.jsonl").write_text('{"image": "p/00.png", "caption": "x"}\n')
    (tmp_path / "c.txt").write_text("one\n")
    shard(tmp_path / "s" / "a.tar", samples(range(1)))
    specs = {name: f"{kind}:{tmp_path / name}" for kind, name in
             [("images", "p"), ("images", "p.jsonl"), ("captions", "c.txt"), ("text-to-image-2m", "s")]}  # fmt: skip
    before = {name: fingerprint(spec) for name, spec in specs.items()}
    assert before == {name: fingerprint(spec) for name, spec in specs.items()}
    assert len({*before.values(), fingerprint("scenes")}) == 5
    moved = tmp_path.rename(tmp_path.parent / f"{tmp_path.name}-moved")
    moved_specs = {name: spec.replace(str(tmp_path), str(moved)) for name, spec in specs.items()}
    assert before == {name: fingerprint(spec) for name, spec in moved_specs.items()}, "the place is no part of the data"

    def changed() -> set[str]:
        return {name for name, spec in moved_specs.items() if fingerprint(spec) != before[name]}

    (moved / "p" / "01.txt").write_text("picture X\n")  # of the same size
    assert changed() == {"p"}
    (moved / "p" / "00.png").write_bytes(encoded(picture(0)) + b" ")
    assert changed() == {"p", "p.jsonl"}
    (moved / "c.txt").write_text("two\n")
    shard(moved / "s" / "b.tar", samples(range(1)))
    assert changed() == set(specs)


# The hub.


def test_offline_the_sentence_says_how(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    refused(
        "text-to-image-2m", r"expected text-to-image-2m:PATH .* found neither, and HF_HUB_OFFLINE=0 allows the down"
    )
    with pytest.raises(UserError, match="HF_HUB_OFFLINE=0"):
        fingerprint("text-to-image-2m")


class FakeHub:
    """Two shards; counts downloads. Offline it lists nothing and has only the first."""

    def __init__(self, folder: Path, monkeypatch, offline: bool):
        self.folder, self.offline, self.got = folder, offline, []
        for i in (0, 1):
            shard(folder / f"data_512_2M/data_{i:06d}.tar", samples(range(i * 3, i * 3 + 3)))
        monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: str(folder / "abc123"))
        monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", self.list_files)
        monkeypatch.setattr("huggingface_hub.hf_hub_download", self.download)

    def list_files(self, repository, *, repo_type, revision):
        if self.offline:
            raise ConnectionError
        assert (repository, repo_type, revision) == (hub.REPOSITORY, "dataset", "abc123")
        return [
            "README.md",
            "data_1024_10K/data_000000.tar",
            "data_512_2M/data_000001.tar",
            "data_512_2M/data_000000.tar",
        ]

    def download(self, repository, file, *, repo_type, revision):
        assert (repository, repo_type, revision) == (hub.REPOSITORY, "dataset", "abc123")
        if self.offline and file != "data_512_2M/data_000000.tar":
            raise FileNotFoundError("not in the cache")
        self.got.append(file)
        return str(self.folder / file)


def test_the_hubs_shards_come_one_by_one(tmp_path, monkeypatch):
    there = FakeHub(tmp_path, monkeypatch, offline=False)
    found = captioned_images("text-to-image-2m", split="train", rows=None, seed=0)
    assert next(found).origin == "data_000000.tar:0000"
    assert there.got == ["data_512_2M/data_000000.tar"], "a shard was fetched before it was needed"
    assert [each.caption for each in found] == [f"picture {i}" for i in range(1, 6)]


def test_a_part_of_the_hubs_shards_is_not_taken_for_the_whole(tmp_path, monkeypatch):
    FakeHub(tmp_path, monkeypatch, offline=True)
    assert len(all_of("text-to-image-2m", rows=3)) == 3
    refused(
        "text-to-image-2m", r"or data_512_2M/data_000001\.tar of jackyhate/text-to-image-2M in the hub's cache, found"
    )
