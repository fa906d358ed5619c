"""No code that lies beside a model runs unless it is trusted, and nobody is ever asked on standard input."""

from __future__ import annotations

import ast
import builtins
import io
import json
import sys
import warnings
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stabledllm.errors import UserError
from stabledllm.images.tokenizer import load_image_tokenizer
from stabledllm.models.adapters import LoRAOptions, add_lora
from stabledllm.models.loading import load_model
from tests.models.damage import WRITE

ROOT = Path(__file__).parents[2]
LOADERS = {"from_pretrained", "from_config", "load_dataset"}
# peft reads an adapter's config as JSON; what in it could import a module is refused beforehand.
READS_JSON_ONLY = {"PeftConfig"}


def calls(tree: ast.AST):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            function = node.func
            name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
            owner = ast.unparse(function.value) if isinstance(function, ast.Attribute) else ""
            yield node, name, owner


def partials(tree: ast.AST):
    """``partial(x.from_config, ...)``: the flag must stand there."""
    for node, name, _ in calls(tree):
        if name == "partial" and node.args and isinstance(node.args[0], ast.Attribute):
            yield node, node.args[0].attr, ast.unparse(node.args[0].value)


def unsafe(source: str) -> list[int]:
    """Lines that could load foreign code or pickles: a loader without its flag, a pickle, yaml's other loaders."""
    tree, lines = ast.parse(source), []
    flags = {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        for target, value in _pairs(node)
        if isinstance(value, ast.Dict) and any(ast.unparse(key) == "'trust_remote_code'" for key in value.keys if key)
    }
    for node, name, owner in [*calls(tree), *partials(tree)]:
        words = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords if keyword.arg}
        spread = [ast.unparse(keyword.value) for keyword in node.keywords if keyword.arg is None]
        told = words.get("trust_remote_code", "None") != "None" or any(
            s in flags or "foreign_code" in s for s in spread
        )
        if (
            (name in LOADERS and owner not in READS_JSON_ONLY and not told)
            or (owner in ("pickle", "cloudpickle", "dill", "joblib") and name in ("load", "loads", "Unpickler"))
            or ((owner, name) == ("torch", "load") and words.get("weights_only") != "True")
            or (owner == "yaml" and name in ("load", "load_all") and "Safe" not in words.get("Loader", ""))
            or (owner == "yaml" and name.startswith(("unsafe", "full")))
            or (owner in ("np", "numpy") and name == "load" and words.get("allow_pickle", "False") != "False")
            or (owner == "" and name in ("input", "eval", "exec"))
        ):
            lines.append(node.lineno)
    return sorted(set(lines))


def _pairs(node: ast.Assign):
    for target in node.targets:
        if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
            yield from zip((t for t in target.elts if isinstance(t, ast.Name)), node.value.elts, strict=False)
        elif isinstance(target, ast.Name):
            yield target, node.value


def test_every_call_that_could_run_foreign_code_has_its_flag():
    folders = [ROOT / name for name in ("src", "scripts", "studies", "benchmarks")]
    files = [file for folder in folders for file in folder.rglob("*.py")]
    assert len(files) > 100
    found = {str(file.relative_to(ROOT)): unsafe(file.read_text(encoding="utf-8")) for file in files}
    assert not {file: lines for file, lines in found.items() if lines}


@pytest.mark.parametrize(
    "line",
    [
        "AutoConfig.from_pretrained(folder, local_files_only=True)",
        "AutoModelForCausalLM.from_config(config)",
        "partial(AutoModel.from_config, config)",
        "AutoTokenizer.from_pretrained(folder, trust_remote_code=None)",
        "datasets.load_dataset('x')",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "pickle.loads(data)",
        "yaml.load(text)",
        "np.load(path, allow_pickle=True)",
        "input('y?')",
    ],
)
def test_the_rule_sees(line):
    assert unsafe(line) == [1]


def test_the_rule_lets_pass():
    assert not unsafe("AutoConfig.from_pretrained(folder, trust_remote_code=False)")
    assert not unsafe("safe = {'trust_remote_code': False}\nCLIPModel.from_pretrained(folder, **safe)")
    assert not unsafe("torch.load(path, weights_only=True)\nyaml.safe_load(text)\nnp.load(path)")


EVIL = """
from pathlib import Path
Path({mark!r}).write_text("ran")
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
class Config(PretrainedConfig):
    model_type = "evil"
class Model(PreTrainedModel):
    config_class = Config
class Tokenizer(PreTrainedTokenizerFast):
    pass
"""
INTERFACES = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoModelForMaskedLM")


@pytest.fixture
def nobody_is_asked(monkeypatch):
    """Standard input says yes to everything, and being asked is a failure."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 50))

    def asked(*_):
        raise AssertionError("a question on standard input")

    monkeypatch.setattr(builtins, "input", asked)


def poisoned(folder: Path, mark: Path, **config) -> Path:
    """The folder with code beside it that every loader of transformers is pointed to."""
    (folder / "evil.py").write_text(EVIL.format(mark=str(mark)))
    keys = json.loads((folder / "config.json").read_text()) | config
    keys["auto_map"] = {name: "evil.Config" if name == "AutoConfig" else "evil.Model" for name in INTERFACES}
    (folder / "config.json").write_text(json.dumps(keys))
    if (path := folder / "tokenizer_config.json").is_file():
        names = json.loads(path.read_text()) | {"tokenizer_class": "Tokenizer"}
        names["auto_map"] = {"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]}
        path.write_text(json.dumps(names))
    return folder


def attempt(load) -> None:
    """It loads by its files, or is refused in a sentence."""
    with warnings.catch_warnings(), suppress(UserError):
        warnings.simplefilter("ignore")
        load()


@pytest.mark.usefixtures("nobody_is_asked")
@pytest.mark.parametrize("kind", ["bert", "qwen2", "llada", "tiny"])
@pytest.mark.parametrize("type_", ["own", "evil"])
def test_a_folder_with_code_of_its_own(tmp_path, kind, type_):
    folder, mark = WRITE[kind](tmp_path / kind), tmp_path / "mark"
    poisoned(folder, mark, **({"model_type": "evil"} if type_ == "evil" else {}))
    for name in (str(folder), f"new:{folder}"):
        for family in ("auto", "mlm", "arm"):
            attempt(lambda name=name, family=family: load_model(name, family=family))
    for file in ("tokenizer.json", "vocab.json"):  # no files that decide: the class that the config names
        (folder / file).unlink(missing_ok=True)
    attempt(lambda: load_model(str(folder)))
    attempt(lambda: load_image_tokenizer(str(folder)))
    assert not mark.exists()


@pytest.mark.usefixtures("nobody_is_asked")
def test_an_adapter_on_such_a_base(tmp_path, monkeypatch):
    mark = tmp_path / "mark"
    base = WRITE["qwen2"](tmp_path / "base")
    loaded = load_model(str(base))
    add_lora(loaded, LoRAOptions(rank=2)).save(tmp_path / "adapter")
    poisoned(base, mark)
    attempt(lambda: load_model(str(tmp_path / "adapter")))
    attempt(lambda: load_model(str(tmp_path / "adapter"), base=str(base)))
    # peft would import a module by the name that the adapter's config gives.
    (tmp_path / "evil_core.py").write_text(EVIL.format(mark=str(mark)))
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "adapter" / "adapter_config.json"
    keys = json.loads(path.read_text())
    path.write_text(json.dumps(keys | {"megatron_config": {"a": 1}, "megatron_core": "evil_core"}))
    with pytest.raises(UserError, match="expected no megatron_config"):
        load_model(str(tmp_path / "adapter"), base=str(WRITE["qwen2"](tmp_path / "clean")))
    assert not mark.exists()


@pytest.mark.usefixtures("nobody_is_asked")
@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "experts_implementation"])
def test_attention_kernels_of_a_repository(tmp_path, key):
    folder = WRITE["qwen2"](tmp_path)
    keys = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(keys | {key: "someone/kernels"}))
    with pytest.raises(UserError, match=f"{key}: expected one of sdpa, eager"):
        load_model(str(folder))


class Boom:
    def __reduce__(self):
        return (Path.write_text, (Path("boom"), "ran"))


@pytest.mark.parametrize("kind", ["bert", "qwen2", "llada", "tiny"])
def test_pickled_weights_only_where_asked_for(tmp_path, kind, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = WRITE[kind](tmp_path / kind)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(UserError, match="found pickled weights only; allow_pickle=true reads them"):
            load_model(str(folder))
        found = load_model(str(folder), allow_pickle=True).model.state_dict()
        assert any(torch.equal(value, weights[name]) for name, value in found.items() if name in weights)
        torch.save(weights | {"boom": Boom()}, folder / "pytorch_model.bin")
        with pytest.raises(UserError, match="expected plain tensors in pytorch_model"):
            load_model(str(folder), allow_pickle=True)
    assert not Path("boom").exists()


def test_pickled_adapters_only_where_asked_for(tmp_path):
    base = WRITE["llada"](tmp_path / "base")
    add_lora(load_model(str(base)), LoRAOptions(rank=2)).save(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    weights = load_file(file)
    file.unlink()
    torch.save(weights, tmp_path / "adapter" / "adapter_model.bin")
    with pytest.raises(UserError, match="found a pickled file only; allow_pickle=true"):
        load_model(str(tmp_path / "adapter"))
    load_model(str(tmp_path / "adapter"), allow_pickle=True)
    save_file(weights, file)
    load_model(str(tmp_path / "adapter"))
