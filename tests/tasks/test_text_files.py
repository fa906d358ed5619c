r"""Files as they lie on people's disks: only ``\n`` ends a line, marks and links and capitals do not hide a row."""

from __future__ import annotations

import io
import json
import os
import sys

import pytest

from stabledllm.config.settings import DataSettings, EvalSettings, TrainSettings
from stabledllm.config.settings.values import at_home
from stabledllm.data.sources import load_examples
from stabledllm.data.text import load_documents
from stabledllm.errors import UserError
from stabledllm.evaluation.run import _lines
from stabledllm.images.folders import of_images
from stabledllm.images.sources import captioned_images
from stabledllm.runtime.files import write_jsonl
from stabledllm.tasks import text_files
from stabledllm.tasks.files import read_jsonl
from stabledllm.tasks.text_files import files_below, lines
from tests.cli.runner import assert_refused, in_process

ODD = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\rh"
"""Characters that other programs end a line at."""
GOOD = b'{"prompt": "a", "response": "b"}\n'


def load(path):
    return load_examples(f"jsonl:{path}", split="train", n=0, seed=0)


def test_nothing_but_a_newline_ends_a_row(tmp_path):
    rows = [{"prompt": ODD, "response": f"{i} {ODD}"} for i in range(3)]
    write_jsonl(tmp_path / "a.jsonl", rows)
    assert [e["messages"][1]["content"] for e in load(tmp_path / "a.jsonl")] == [f"{i} {ODD}" for i in range(3)]
    assert _lines(tmp_path / "a.jsonl") == rows, "what an evaluation wrote is read back by the next"
    (tmp_path / "a.txt").write_bytes(f"{ODD}\n{ODD}\r\n".encode())
    captions = [p.caption for p in captioned_images(f"captions:{tmp_path / 'a.txt'}", split="test", rows=None, seed=0)]
    assert captions == [ODD, ODD]
    assert [text for *_, text in lines(io.BytesIO(f"\ufeff{ODD}\r\nx\r".encode()), "f")] == [ODD, "x\r"]


def test_marks_at_a_files_beginning_are_no_text(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + GOOD.replace(b"\n", b"\r\n") + GOOD)
    assert [e["messages"][0]["content"] for e in load(tmp_path / "a.jsonl")] == ["a", "a"]
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbffirst\r\nsecond\rx")
    assert load_documents(tmp_path / "a.txt", ["text"])[0]["text"] == "first\nsecond\rx"
    for encoding in ("utf-16", "utf-16-le", "utf-16-be"):
        for name in ("b.jsonl", "b.txt"):
            (tmp_path / name).write_bytes(GOOD.decode().encode(encoding))
            with pytest.raises(UserError, match=rf"{name}: expected UTF-8 text, found (UTF-16|a NUL byte)"):
                list(load_documents(tmp_path / name, ["prompt"]))


BROKEN = {
    "garbage behind": (GOOD[:-1] + b" x", "broken JSON"),
    "a key twice": (b'{"prompt": "a", "prompt": "c", "response": "b"}', "every key once, found 'prompt' twice"),
    "a key twice within": (b'{"messages": [{"role": "user", "role": "user"}]}', "found 'role' twice"),
    "nan": (b'{"prompt": "a", "response": "b", "x": NaN}', "finite numbers, found nan"),
    "infinity": (b'{"prompt": "a", "response": "b", "x": [-Infinity]}', "finite numbers, found -infinity"),
    "beyond floats": (b'{"prompt": "a", "response": "b", "x": [[1e999]]}', "beyond every float under 'x'"),
    "half a pair": (b'{"prompt": "a", "response": "b", "x": ["\\ud800"]}', "under 'x', found half of a surrogate pair"),
    "half a pair as key": (b'{"prompt": "a", "response": "b", "\\udc00": 1}', "found half of a surrogate pair"),
    "cut off": (b'{"prompt": "a", "respo', "broken JSON"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_row_is_named_by_file_and_line(tmp_path, name):
    line, says = BROKEN[name]
    (tmp_path / "a.jsonl").write_bytes(GOOD + b"\n" + line + b"\n" + GOOD)
    with pytest.raises(UserError) as error:
        load(tmp_path / "a.jsonl")
    assert str(error.value).startswith(f"{tmp_path}/a.jsonl:3: expected ")
    assert says in str(error.value)


@pytest.mark.parametrize(("byte", "says"), [(b"\0", "a NUL byte in line 3"), (b"\xff", "a byte that is not in line 3")])
def test_bytes_that_are_no_text_are_named_by_file_and_line(tmp_path, byte, says):
    (tmp_path / "a.jsonl").write_bytes(GOOD * 2 + GOOD.replace(b"a", byte))
    with pytest.raises(UserError, match=rf"a\.jsonl: expected UTF-8 text, found {says}"):
        load(tmp_path / "a.jsonl")


def test_a_line_without_end_is_not_read_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "LONGEST_LINE", 1 << 20)
    (tmp_path / "a.jsonl").write_bytes(GOOD + b"x" * (3 << 20))
    with pytest.raises(UserError, match=r"a\.jsonl:2: expected a line of at most 1 MiB, found a longer one"):
        load(tmp_path / "a.jsonl")


def test_links_and_capitals_are_followed_and_no_folder_is_read_twice(tmp_path):
    data, apart = tmp_path / "data", tmp_path / "apart"
    for folder in (data / "deep", apart):
        folder.mkdir(parents=True)
    (data / "deep" / "A.TXT").write_text("first")
    (apart / "b.Txt").write_text("second")
    (apart / "c.md").write_text("no")
    (data / "link").symlink_to(apart)
    (data / "again").symlink_to(apart)
    (data / "deep" / "loop").symlink_to(data)
    (data / "file.txt").symlink_to(apart / "c.md")
    assert sorted(d["text"] for d in load_documents(data, ["text"])) == ["first", "no", "second"]
    assert len(files_below(data, [".md"])) == 1
    (data / "gone.txt").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"gone\.txt: expected a file, found a link that leads nowhere"):
        load_documents(data, ["text"])
    (apart / "ROWS.JSONL").write_bytes(b'{"text": "x"}\n')
    assert [d["text"] for d in load_documents(apart / "ROWS.JSONL", ["text"])] == ["x"]


def test_pictures_in_linked_folders_with_capital_endings(tmp_path):
    (tmp_path / "apart").mkdir()
    (tmp_path / "set").mkdir()
    (tmp_path / "apart" / "A.PNG").write_bytes(b"x")
    (tmp_path / "apart" / "A.TXT").write_bytes(b"\xef\xbb\xbfa red square\r\n")
    (tmp_path / "set" / "link").symlink_to(tmp_path / "apart")
    (found,) = of_images(tmp_path / "set").items("train", 0)
    assert (found.caption, found.origin) == ("a red square", "link/A.PNG")


def test_a_file_that_changes_while_it_is_in_use_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(GOOD)
    examples = load(tmp_path / "a.jsonl")
    (tmp_path / "a.jsonl").write_bytes(GOOD * 2)
    with pytest.raises(UserError, match=r"a\.jsonl: expected a file that stays as it is"):
        list(examples)


def test_every_path_of_the_settings_may_begin_at_home(tmp_path, monkeypatch):
    home = str(tmp_path)
    monkeypatch.setenv("HOME", home)
    data = DataSettings(train="jsonl:~/a.jsonl", validation="text:~/b", test="gsm8k", image={"cache": "~/codes"})
    assert (data.train, data.validation, data.test) == (f"jsonl:{home}/a.jsonl", f"text:{home}/b", "gsm8k")
    assert data.image.cache == f"{home}/codes"
    run = TrainSettings(out="~/run", model="new:~/model", p_of_t="~/p.json", clip="~/clip")
    assert (run.out, run.model) == (f"{home}/run", f"new:{home}/model")
    assert (run.p_of_t, run.clip) == (f"{home}/p.json", f"{home}/clip")
    assert EvalSettings(base="~/b", beside="~/c").beside == f"{home}/c"
    assert at_home("owner/~name") == "owner/~name"


def test_the_command_lines_paths_may_begin_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "in.jsonl").write_text(json.dumps({"completion": f"#### 5{ODD}", "gold": "5"}) + "\n")
    work = tmp_path / "work"
    work.mkdir()
    done = in_process("rescore", "~/in.jsonl", "--task", "gsm8k", "--out=~/new/out.jsonl", cwd=work)
    assert done.returncode == 0, done.stderr
    assert os.listdir(work) == []
    (row,) = (record for _, record in read_jsonl(tmp_path / "new" / "out.jsonl"))
    assert row["completion"] == f"#### 5{ODD}"


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        (b"a\n\nb\n", "generate: prompt 2: expected some text, found an empty one"),
        (b"a\n\xff\n", "standard input: expected UTF-8 text, found a byte that is not in line 2"),
        (b"", "standard input: expected at least one prompt, found none"),
    ],
)
def test_prompts_on_standard_input_are_refused_by_their_number(tmp_path, monkeypatch, typed, says):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed)))
    assert_refused(in_process("generate", "-", cwd=tmp_path), says)


def test_prompts_on_standard_input_end_at_newlines_of_either_kind(monkeypatch):
    from stabledllm.cli.prompt_files import read_prompts
    from stabledllm.config.settings import DataSettings

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"\ufeffone\r\n{ODD}\nlast".encode())))
    assert [prompt.text for prompt in read_prompts(["-"], None, DataSettings())] == ["one", ODD, "last"]
    assert [prompt.text for prompt in read_prompts(["-", "x"], None, DataSettings())] == ["-", "x"]
