"""LLaDA-8B's exact shape on one GPU: training steps, memory, packing, compilation, decoding, against plain baselines.

    python benchmarks/gpu.py                  8 minutes at most; writes benchmarks/results/gpu.json
    python benchmarks/gpu.py --rehearse       the same code at a small shape on the CPU, in seconds; writes nothing

Weights are random and in bfloat16, rows have 1,024 and 4,096 tokens. Baselines run in the same process: logits at all
positions, and the published decoding loop. Each item has a limit and is written as soon as it is done; one that does
not fit the time or the memory says so, and the next begins. Steps train all weights where ``stabledllm plan`` says that
they fit, else adapters; what it says stands beside what is measured.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import gpu_decoding
import gpu_items
import torch
from common import RESULTS
from gpu_device import CUDADevice, Device

from stabledllm.runtime.files import write_json
from stabledllm.runtime.provenance import versions

GIB = 2**30
LIMITS = {"noise": 30, "training": 90, "decoding": 90, "packing": 60, "compiled": 120}
"""Seconds that an item may take."""


def items(scale: gpu_items.Scale) -> dict[str, tuple[int, Callable]]:
    """Name to limit and function of every item, the most telling first."""
    short = scale.lengths[0]
    training = {f"training, rows of {n}": partial(gpu_items.training, length=n) for n in scale.lengths}
    found = {"noise": gpu_items.noise, **training, "decoding": gpu_decoding.decoding, "packing": gpu_items.packing}
    found |= {f"compiled, rows of {short}": partial(gpu_items.training, length=short, compiled=True)}
    return {name: (LIMITS[name.split(",")[0]], item) for name, item in found.items()}


def run(device: Device, scale: gpu_items.Scale, seconds: float, keep: Callable[[dict], None]) -> dict:
    """Every item's result by its name; ``keep`` gets all there are after each."""
    ends = time.monotonic() + seconds
    record = {
        "device": device.name, "memory_bytes": device.total_bytes, "peak_flops": device.peak_flops,
        "versions": versions(), "configuration": configuration(scale), "items": {}, "ratios": {},
    }  # fmt: skip
    model = None
    for name, (limit, item) in ({"model": (60, made)} | items(scale)).items():
        left = ends - time.monotonic()
        if name != "model" and model is None:
            result = {"status": "skipped", "reason": "there is no model"}
        elif left < min(limit, 10):
            result = {"status": "skipped", "reason": f"{max(left, 0):.0f} s were left of {seconds:.0f} s"}
        else:
            began = time.monotonic()
            given = (device, scale) if item is made else (device, scale, model)
            result = attempt(device, min(limit, left), partial(item, *given))
            model = result.pop("made", model)
            result["took_seconds"] = time.monotonic() - began
        record["items"][name] = result
        record["ratios"] = ratios(record["items"])
        keep(record)
        print(line(name, result), flush=True)
    return record


def made(device: Device, scale: gpu_items.Scale) -> gpu_items.Results:
    """The model, and how large it is."""
    model = gpu_items.make_model(device, scale.shape)
    yield "made", model
    yield from gpu_items.parameters(device, scale, model)


def attempt(device: Device, limit: float, item: Callable[[], gpu_items.Results]) -> dict:
    """What an item gave, whatever becomes of it."""
    result = {"status": "done"}
    try:
        with at_most(limit):
            for name, value in item():
                result[name] = value
        return result
    except TooLong:
        result |= {"status": "stopped", "reason": f"took longer than {limit:.0f} s"}
    except torch.OutOfMemoryError as error:
        result |= {"status": "out of memory", "reason": first_line(error)}
    except Exception as error:  # the next item may well run, and device time is dear
        result |= {"status": "failed", "reason": f"{type(error).__name__}: {first_line(error)}"}
    device.free()
    return result


class TooLong(Exception):
    """An item's time is up."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """A context that ends with :class:`TooLong` after so many seconds, as soon as Python runs again."""

    def end(*_):
        raise TooLong

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:300]


def configuration(scale: gpu_items.Scale) -> dict:
    """The sizes of the run, as JSON values."""
    return json.loads(json.dumps(vars(scale), default=vars))


def ratios(results: dict[str, dict]) -> dict[str, float]:
    """Ours against the baseline of the same item."""
    found = {}
    for name, result in results.items():
        lean, plain = result.get("lean head"), result.get("all logits")
        if lean and plain:
            found[f"{name}: time of a step, lean head to all logits"] = lean["seconds"] / plain["seconds"]
            above = [part["peak_bytes"] - part["resident_bytes"] for part in (lean, plain)]
            found[f"{name}: memory above the resident, lean head to all logits"] = above[0] / max(above[1], 1)
            found[f"{name}: peak memory, lean head to all logits"] = lean["peak_bytes"] / max(plain["peak_bytes"], 1)
            found[f"{name}: peak memory, measured to planned"] = lean["peak_bytes"] / lean["planned_bytes"]
            found[f"{name}: first loss, lean head to all logits"] = lean["first_loss"] / plain["first_loss"]
        for cache in ("none", "prefix", "dual"):
            if ours := result.get(f"cache {cache}"):
                found[f"{name}: tokens per second, cache {cache} to the published loop"] = (
                    ours["tokens_per_second"] / result["published loop"]["tokens_per_second"]
                )
        if packed := result.get("packed"):
            found[f"{name}: useful tokens per second, packed to padded"] = (
                packed["tokens_per_second"] / result["padded"]["tokens_per_second"]
            )
        if name.startswith("compiled") and lean:
            other = results.get(name.replace("compiled", "training"), {}).get("lean head")
            if other:
                found[f"{name}: time of a step, compiled to not"] = lean["seconds"] / other["seconds"]
    return found


def line(name: str, result: dict) -> str:
    """One item in one line or a few."""
    head = f"{name}: {result['status']}" + (f", {result['took_seconds']:.1f} s" if "took_seconds" in result else "")
    parts = [f"{head} ({result['reason']})" if "reason" in result else head]
    for key, value in result.items():
        if isinstance(value, dict) and (shown := numbers(value)):
            parts.append(f"    {key}: {shown}")
    return "\n".join(parts)


def numbers(value: dict) -> str:
    """The numbers of a part that a person looks at first."""
    shown = []
    if "seconds" in value and "model_calls" not in value:
        shown.append(f"{1000 * value['seconds']:.1f} ms")
    if "tokens_per_second" in value:
        shown.append(f"{value['tokens_per_second']:,.0f} tokens/s")
    if value.get("utilisation") is not None:
        shown.append(f"{100 * value['utilisation']:.0f} % of the peak")
    if "peak_bytes" in value:
        shown.append(f"peak {size(value['peak_bytes'])}")
    if "planned_bytes" in value:
        shown.append(f"planned {size(value['planned_bytes'])}")
    if "same_tokens" in value:
        shown.append(f"{100 * value['same_tokens']:.0f} % of the loop's tokens")
    if "same masks as on the CPU" in value:
        shown.append("the CPU's bits" if value["same masks as on the CPU"] else "NOT the CPU's bits")
    return ", ".join(shown)


def size(count: float) -> str:
    """A number of bytes in words."""
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / 2**20:.1f} MiB"


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rehearse", action="store_true", help="the same at a small shape on the CPU, in seconds")
    parser.add_argument("--minutes", type=float, default=8.0, help="the time for all items together (default 8)")
    parser.add_argument(
        "--out", type=Path, help="the JSON file (default benchmarks/results/gpu.json; none in rehearsal)"
    )
    given = parser.parse_args(words)
    if not given.rehearse and not torch.cuda.is_available():
        print("gpu: expected a CUDA device, found none; --rehearse runs the same code on the CPU.", file=sys.stderr)
        return 2
    device, scale = (Device(), gpu_items.REHEARSAL) if given.rehearse else (CUDADevice(), gpu_items.FULL)
    out = given.out or (None if given.rehearse else RESULTS / "gpu.json")
    record = run(device, scale, 60 * given.minutes, partial(write_json, out) if out else lambda _: None)
    for name, value in record["ratios"].items():
        print(f"{value:8.3f}  {name}")
    statuses = {name: result["status"] for name, result in record["items"].items() if name != "model"}
    return int(not set(statuses.values()) & {"done"} or bool(set(statuses.values()) & {"failed", "stopped"}))


if __name__ == "__main__":
    raise SystemExit(main())
