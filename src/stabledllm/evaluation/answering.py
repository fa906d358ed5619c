"""The completions of many prompts, batch by batch: handed on as they come, or kept in a file across a kill."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from stabledllm.config.settings import GenerateSettings
from stabledllm.data.prompting import with_prompts_before
from stabledllm.data.prompts import Prompt
from stabledllm.decoding import DecodingOptions, DecodingStats
from stabledllm.evaluation.begun import begun_folder
from stabledllm.evaluation.completing import complete, complete_resumably
from stabledllm.evaluation.identity import digest_of, fingerprint
from stabledllm.evaluation.journal import Journal
from stabledllm.models.loading import LoadedModel
from stabledllm.runtime.files import write_jsonl
from stabledllm.runtime.showing import bar


def completions(
    loaded: LoadedModel,
    prompts: list[Prompt],
    settings: GenerateSettings,
    options: DecodingOptions,
    stats: DecodingStats,
) -> Iterator[tuple[Prompt, str]]:
    """Each prompt with its completion, in order; a batch is handed on when it is decoded.

    What is drawn at random depends on a prompt's place among all, never on the batches.
    """
    conversations, size = with_prompts_before(prompts, settings.data), settings.generate_batch
    tools = [prompt.tools for prompt in prompts]
    for start in range(0, len(prompts), size):
        run = slice(start, start + size)
        # The bar is away whenever completions are printed, which would share its line.
        with bar(len(prompts), "generate", "prompt", initial=start) as shown:
            texts = complete(
                loaded, conversations[run], options, size, shown.update, stats, first=start, tools=tools[run]
            )
        yield from zip(prompts[run], texts, strict=True)


def write_completions(
    loaded: LoadedModel,
    prompts: list[Prompt],
    settings: GenerateSettings,
    options: DecodingOptions,
    stats: DecodingStats,
) -> None:
    """Write a JSON line for each prompt, ``origin``, ``prompt`` and ``completion``, to the settings' ``out``.

    What is decoded is kept in ``OUT.begun/`` until all is: the same command again continues after a kill, and decodes
    nothing twice. The file appears whole.

    Raises:
        UserError: what was begun was with other prompts, another model, or other decoding.
    """
    out = Path(settings.out).expanduser()
    conversations = with_prompts_before(prompts, settings.data)
    tools = [prompt.tools for prompt in prompts]
    journal = Journal(begun_folder(out), "completions", _identity(settings, options, conversations, tools))
    size = settings.generate_batch
    with bar(len(prompts), "generate", "prompt") as shown:
        texts = complete_resumably(loaded, conversations, options, size, journal, shown.update, stats, tools=tools)
    rows = zip(prompts, texts, strict=True)
    write_jsonl(out, [prompt.row | {"completion": text} for prompt, text in rows])
    journal.remove()


def _identity(
    settings: GenerateSettings, options: DecodingOptions, conversations: list[list[dict]], tools: list[list[dict]]
) -> dict:
    loading = {name: getattr(settings, name) for name in ("family", "dtype", "attention", "end_token")}
    loading |= {} if settings.mask_token_id is None else {"mask_token_id": settings.mask_token_id}
    weights = {"model": settings.model, "weights": fingerprint(settings.model, settings.base)}
    asked = {"prompts": digest_of(conversations), "tools": digest_of(tools)}
    return weights | loading | {"decoding": asdict(options)} | asked
