"""Counts the code of the spine: what a reader must trust from the noise to a method's predicted variance.

Lines of code are those that hold anything but a docstring, a comment or an import; blank lines do not count. An import
says where a name comes from and computes nothing.

Spine: ``noise/``, ``loss.py``, ``ppots/``, ``variance/`` and ``stats/``, but for the files of :data:`EXCLUDED`: block
diffusion, an option of training, and what only stores or words figures that the others worked out.

Usage: python scripts/count_spine.py. Exit code 1 above :data:`LIMIT`, which is what it has and may only fall.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1] / "src" / "stabledllm"
SPINE = ("noise", "loss.py", "ppots", "variance", "stats")
EXCLUDED = {
    "noise/blocks.py": "block diffusion's units",
    "noise/bell.py": "an option of the objective: a bell of mask ratios, and the law of a count in it",
    "noise/takes.py": "which parts go with which objective, and what is said where they do not",
    "noise/tokens.py": "an option of the objective: weights or choices of single tokens",
    "noise/windows.py": "an option of the objective: a window of mask ratios, and the law of a count in it",
    "noise/names.py": "the grammar of method strings: which of them name parts, and what is refused",
    "ppots/adaptive.py": "an option of training: p(t) refitted from its losses",
    "ppots/fitted_for.py": "of the file format of a fitted density: what it was fitted for",
    "ppots/record.py": "the file format of a fitted density",
    "variance/blocks.py": "the same losses and steps of rows in blocks",
    "variance/comparison.py": "rows and sentences of decomposition.json, from figures that the others worked out",
}
LIMIT = 1500
_LAYOUT = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER,
}  # fmt: skip


def lines_of_code(source: str) -> int:
    """Lines that hold anything but a docstring, a comment or an import."""
    left_out: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        if text or isinstance(node, ast.Import | ast.ImportFrom):
            left_out.update(range(node.lineno, node.end_lineno + 1))
    used: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _LAYOUT:
            used.update(range(token.start[0], token.end[0] + 1))
    return len(used - left_out)


def main() -> int:
    """Print the table and return the exit code."""
    counts: Counter[str] = Counter()
    for name in SPINE:
        place = ROOT / name
        for path in [place] if place.is_file() else sorted(place.rglob("*.py")):
            if path.relative_to(ROOT).as_posix() not in EXCLUDED:
                counts[name] += lines_of_code(path.read_text(encoding="utf-8"))
    for name, count in counts.items():
        print(f"{name:12}{count:6,}")
    for name, why in EXCLUDED.items():
        print(f"left out: {name} ({lines_of_code((ROOT / name).read_text(encoding='utf-8'))}), {why}")
    print(f"{'total':12}{counts.total():6,} of at most {LIMIT:,}")
    return int(counts.total() > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
