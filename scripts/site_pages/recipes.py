"""The page of the recipes: every YAML file that comes with the package, as it is."""

from __future__ import annotations

import re

from stabledllm.config import shipped_launches, shipped_recipes

INTRODUCTION = """# Recipes

All that `stabledllm ls` lists, as it is shipped. `stabledllm train NAME KEY=VALUE...` runs one of a single run,
`stabledllm experiment NAME` one with `methods` and `seeds`; `stabledllm cp NAME` copies it, to edit; `+` joins two,
such as `gsm8k/llada-8b+lora`. [Every key](keys.md), and [how values are read](settings.md)."""
GROUPS = {
    "": "To begin with",
    "pretrain": "Pre-training",
    "gsm8k": "GSM8K, with the paper's settings",
    "hitab": "HiTab, with the paper's settings",
    "preferences": "Preferences",
    "policy": "Policy gradients, with the settings of published algorithms",
    "openscience": "OpenScience, with the paper's settings",
    "table1": "The paper's Table 1",
    "table2": "The paper's Table 2",
    "parts": "Parts that others extend",
    "accelerate": "Launch configurations",
}


def page() -> str:
    """The Markdown of the page."""
    texts = shipped_recipes() | shipped_launches()
    parts = [
        INTRODUCTION,
        "| recipe | what it is |\n|---|---|\n" + "\n".join(_row(name, text) for name, text in texts.items()),
    ]
    for group in sorted({_group(name) for name in texts}, key=list(GROUPS).index):
        parts.append(f"## {GROUPS[group]}")
        parts += [_section(name, text, texts) for name, text in texts.items() if _group(name) == group]
    return "\n\n".join(parts) + "\n"


def _group(name: str) -> str:
    return name.rpartition("/")[0]


def _header(text: str) -> tuple[list[str], str]:
    """The lines of the comment at the top of a file without their marks, and the rest."""
    lines = text.splitlines()
    end = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return [line[1:].removeprefix(" ") for line in lines[:end]], "\n".join(lines[end:]).strip("\n")


def _row(name: str, text: str) -> str:
    return f"| [`{name}`](#{_anchor(name)}) | {_header(text)[0][0]} |"


def _anchor(name: str) -> str:
    return name.replace("/", "-").replace(".", "-")


def _section(name: str, text: str, texts: dict[str, str]) -> str:
    header, body = _header(text)
    prose = "\n".join(line for line in header if not line.startswith("  "))
    commands = "\n".join(line.strip() for line in header if line.startswith("  "))
    parts = [f"### {name} {{ #{_anchor(name)} }}", prose]
    if commands:
        parts.append(f"```sh\n{commands}\n```")
    if extended := [base for base in _extends(body) if base in texts]:
        parts.append("Extends " + ", ".join(f"[`{base}`](#{_anchor(base)})" for base in extended) + ".")
    return "\n\n".join([*parts, f"```yaml\n{body}\n```"])


def _extends(body: str) -> list[str]:
    found = re.search(r"(?m)^\s*extends: *\[?([^\]\n#]+)", body)
    return [base.strip() for base in found[1].split(",")] if found else []
