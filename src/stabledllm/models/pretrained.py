"""The one place that calls ``from_pretrained``: on local folders only, and without running code in them unasked."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def read_pretrained(kind: Any, folder: Path, *, trust_remote_code: bool = False, **options) -> Any:
    """Load an object of a class of transformers or PEFT from the files in a folder.

    Args:
        kind: a class with ``from_pretrained``. folder: local; files of the hub are downloaded before, by
            :func:`~stabledllm.models.families.source.find_folder`.
        trust_remote_code: run the code beside the weights, which only a user may ask for.
        options: passed on to ``from_pretrained``.
    """
    return kind.from_pretrained(str(folder), trust_remote_code=trust_remote_code, local_files_only=True, **options)
