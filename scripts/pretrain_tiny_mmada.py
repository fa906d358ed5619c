"""Makes the model that ships as ``--model tiny-mmada``: MMaDA's family in small, pretrained on scenes of few objects.

    python scripts/pretrain_tiny_mmada.py --out src/stabledllm/assets/tiny-mmada

Everything but the shape and the vocabulary is the library's own: the model is created as ``new:FOLDER`` and trained by
``stabledllm.training``. Weights are stored in half precision.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from stabledllm.config.recipe import check
from stabledllm.config.settings import TrainSettings
from stabledllm.data.images import image_tokenizer
from stabledllm.images.scenes import COLOURS, COUNTS, RELATIONS, SHAPES
from stabledllm.models.families.mmada import MMadaConfig
from stabledllm.training.run import train

SPECIAL = (
    "<|endoftext|>", "<|startoftext|>", "<|mdm_mask|>", "<|eot_id|>", "[UNK]",
    "[iPAD]", "<|t2i|>", "<|soi|>", "<|eoi|>",
)  # fmt: skip
WORDS = (*COUNTS, *COLOURS, *SHAPES, *(f"{shape}s" for shape in SHAPES), *dict.fromkeys(" ".join(RELATIONS).split()))
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}<|eot_id|>{% endfor %}"


def write_model(folder: Path, width: int, layers: int, codebook: int, tokens: int) -> None:
    """config.json and a tokenizer of the captions' words, in the layout of the hub's MMaDA."""
    vocabulary = {token: i for i, token in enumerate((*SPECIAL, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {
        "bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>",
        "mask_token": "<|mdm_mask|>", "unk_token": "[UNK]",
    }  # fmt: skip
    described = names | {"chat_template": TEMPLATE, "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
    rows = -(-(len(vocabulary) + codebook) // 8) * 8
    config = MMadaConfig(
        architectures=["MMadaModelLM"],
        vocab_size=rows,
        new_vocab_size=rows,
        embedding_size=rows,
        llm_vocab_size=len(vocabulary),
        codebook_size=codebook,
        num_vq_tokens=tokens,
        num_new_special_tokens=0,
        d_model=width,
        n_layers=layers,
        n_heads=4,
        mlp_hidden_size=3 * width,
        max_sequence_length=256,
        rope_theta=10_000.0,
        mask_token_id=vocabulary["<|mdm_mask|>"],
        eos_token_id=vocabulary["<|endoftext|>"],
        pad_token_id=vocabulary["<|endoftext|>"],
    )
    config.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/pretrain-tiny-mmada"))
    parser.add_argument("--tokenizer", default="tiny-vq")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--rows", type=int, default=12_000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--level", default="easy")
    args = parser.parse_args()
    pictures = image_tokenizer(args.tokenizer)
    new = args.work / "new"
    write_model(new, args.width, args.layers, pictures.codebook_size, (pictures.side // pictures.downsampling) ** 2)
    settings = {
        "model": f"new:{new}",
        "data": {
            "train": f"scenes:{args.level}",
            "train_rows": args.rows,
            "validation_rows": 256,
            "test_rows": 128,
            "image": {"tokenizer": args.tokenizer, "max_text": 14, "cache": str(args.work / "codes")},
        },
        "method": "lowdisc",
        "objective": {"weighting": "cosine"},
        "batch": args.batch,
        "steps": args.steps,
        "eval_every": max(1, args.steps // 6),
        "save_every": max(1, args.steps // 6),
        "log_every": 50,
        "trainer": {"learning_rate": args.lr, "warmup_steps": 100, "adam_beta2": 0.98, "save_total_limit": 1},
        "image_decoding": {"steps": 12, "guidance": 1.0},
        "generate_batch": 64,
        "out": str(args.work / "run"),
    }
    train(check(settings, TrainSettings, "pretraining"))
    trained = args.work / "run" / "model"
    args.out.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile((new if name != "config.json" else trained) / name, args.out / name)
    half = {name: value.half().contiguous() for name, value in load_file(trained / "model.safetensors").items()}
    save_file(half, args.out / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main()
