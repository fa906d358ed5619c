"""What cannot go with streamed training rows (``data.streaming``), each in a sentence. Loads no torch."""

from __future__ import annotations

from collections.abc import Iterator

from stabledllm.config.settings import DataSettings, TrainSettings
from stabledllm.data.kinds import is_own
from stabledllm.data.splits import has_validation, is_held_out
from stabledllm.errors import Mistakes

_INSTEAD = "leave data.streaming out"


def refuse_unstreamable_data(data: DataSettings) -> None:
    """Refuse data settings that have no meaning where training rows are streamed; nothing where they are not.

    Raises:
        Mistakes: names each, with what to write instead.
    """
    if sentences := [*_of_data(data)]:
        raise Mistakes(sentences)


def refuse_unstreamable(run: TrainSettings, equal: str = "steps") -> None:
    """The same for all settings of a run.

    Args:
        equal: what the runs of an experiment have in common; ``steps`` for a run by itself.

    Raises:
        Mistakes: names each, with what to write instead.
    """
    if sentences := [*_of_data(run.data), *_of_run(run, equal)]:
        raise Mistakes(sentences)


def _of_data(data: DataSettings) -> Iterator[str]:
    if not data.streaming:
        return
    if not is_own(data.train):
        yield (
            f"key 'data.streaming': expected data in files or on the hub (data.train=PATH, text:PATH, hub:OWNER/NAME), "
            f"found '{data.train}'; {_INSTEAD}."
        )
    if data.train_rows is not None:
        yield (
            f"key 'data.train_rows': expected none under data.streaming, which reads as many rows as the steps take, "
            f"found {data.train_rows}; leave it out."
        )
    if data.few_shot:
        yield (
            f"key 'data.few_shot': expected 0 under data.streaming, since worked examples are chosen from all rows, "
            f"found {data.few_shot}; leave it out, or {_INSTEAD}."
        )
    if data.cache is not None:
        yield (
            f"key 'data.cache': expected none under data.streaming, which stores no rows, found '{data.cache}'; leave "
            f"one of the two out."
        )


def _of_run(run: TrainSettings, equal: str) -> Iterator[str]:
    if not run.data.streaming:
        return
    if run.steps is None:
        yield (
            "key 'steps': expected a number of optimizer steps under data.streaming, since the rows of a pass are not "
            "counted, found none; write steps=1000, say."
        )
    if has_validation(run.data) and is_held_out(run.data):
        yield (
            "key 'data.validation': expected a file of validation rows under data.streaming, since no share can be "
            "held out of rows that are not all read, found none; write data.validation=PATH, or "
            "data.validation_share=0 to go without."
        )
    if run.group_by_length:
        yield (
            "key 'group_by_length': expected false under data.streaming, since the lengths of rows to come are not "
            "known, found true; leave it out."
        )
    if workers := run.trainer.get("dataloader_num_workers"):
        yield (
            f"key 'trainer.dataloader_num_workers': expected 0 under data.streaming, since each would read the whole "
            f"stream, found {workers}; write data.workers={workers} instead."
        )
    if equal != "steps":
        yield (
            f"key 'equal': expected steps under base.data.streaming, since the forwards of rows that are not read yet "
            f"cannot be counted, found {equal}; write equal=steps."
        )
