"""The methods that lm-evaluation-harness asks of a model, for a masked diffusion model; imports no harness."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean

import torch
from tqdm import tqdm

from stabledllm.build import loading_options
from stabledllm.config.recipe import check
from stabledllm.config.settings import DecodingSettings, ModelSettings
from stabledllm.decoding import DecodingOptions, DecodingStats, generate
from stabledllm.errors import UserError
from stabledllm.evaluation.ranks import Ranks, whole_models
from stabledllm.integrations.lm_eval.contexts import encode_context, encode_pair, write_chat
from stabledllm.integrations.lm_eval.likelihood import METHOD, Likelihoods, Pair
from stabledllm.integrations.lm_eval.options import cut, decoding, same_arguments, with_run_decoding
from stabledllm.models.loading import load_model
from stabledllm.runtime.files import write_jsonl
from stabledllm.stats.estimate import Estimate

_LOG = logging.getLogger(__name__)
__all__ = ["METHOD", "HarnessModel"]


class HarnessModel:
    """The model of ``--model stabledllm --model_args pretrained=MODEL,...``.

    Log-likelihoods are estimates of a lower bound, unless ``likelihood`` asks for another: from ``draws`` masked copies
    of the continuation, exactly counted masks at stratified ratios, with standard errors from ``replicates``
    independent groups. The noise is a function of ``likelihood_seed`` and the two texts alone: order, batches, devices
    and ``--limit`` change no number.

    Args:
        pretrained: ``tiny``, a folder (of a model, an adapter, or a run, whose way of loading and decoding come with
            it), or a name on the hub. base, family, dtype, attention, end_token, mask_token_id,
            trust_remote_code, allow_pickle: as for ``stabledllm eval``.
        length: number of new tokens; None for what the task asks for (256 where it does not).
        tokens_per_step: tokens decided by a model call; a run's, else 1, which is the most exact.
        likelihood: ``elbo``, ``duel``, ``multisample``, ``tube`` or ``stepmerge``, see ``docs/likelihood.md``.
        draws: masks (``elbo``) or random orders of a log-likelihood, 32. replicates: groups of them, for the error, 4.
        segments: parallel steps of ``stepmerge``, 8.
        greedy: find out whether greedy decoding gives the continuation, at one further model call for each of its
            tokens; false: report that it does not.
        likelihood_out: a file for each log-likelihood with its standard error, JSON lines.
        batch_size: prompts decoded together.
        decoding_settings: block, order, schedule, temperature, top_p, guidance, threshold, ..., as in a recipe.

    Raises:
        UserError: an unknown argument, or a model that does not load.
    """

    def __init__(
        self,
        pretrained: str = "tiny",
        *,
        base: str | None = None,
        family: str | None = None,
        dtype: str | None = None,
        attention: str | None = None,
        end_token: str | None = None,
        mask_token_id: int | None = None,
        trust_remote_code: bool = False,
        allow_pickle: bool = False,
        length: int | None = None,
        tokens_per_step: int | None = None,
        likelihood: str = "elbo",
        draws: int | None = None,
        replicates: int | None = None,
        segments: int | None = None,
        likelihood_seed: int = 0,
        greedy: bool = True,
        likelihood_out: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
        **decoding_settings,
    ):
        super().__init__()
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise UserError(f"lm_eval: expected a batch_size in prompts, found '{batch_size}'.")
        for name in ("length", "steps"):
            if name in decoding_settings:
                raise UserError(f"lm_eval: expected tokens_per_step instead of '{name}', found it.")
        given = {"family": family, "dtype": dtype, "attention": attention, "end_token": end_token}
        given = {name: x for name, x in (given | {"mask_token_id": mask_token_id}).items() if x is not None}
        given |= {"trust_remote_code": trust_remote_code, "allow_pickle": allow_pickle}
        self._length = length
        given, self._decoding, self._tokens_per_step, told = with_run_decoding(
            {"model": pretrained} | given, decoding_settings, tokens_per_step
        )
        settings = check(given, ModelSettings, "lm_eval model_args")
        # Refused now rather than at the first request.
        options, _, _ = decoding(self._decoding, self._tokens_per_step, length, {})
        self._likelihood = Likelihoods.of_arguments(
            likelihood, options, seed=likelihood_seed, draws=draws, replicates=replicates, segments=segments
        )
        self._batch, self._greedy, self._likelihood_out = int(batch_size), greedy, likelihood_out
        with whole_models():
            self._ranks = Ranks.launched(cpu=device == "cpu")
            self._device = _device(device, self._ranks)
            self._loaded = load_model(settings.model, base=base, **loading_options(settings))
        for line in told:
            self._say(line)
        if self._loaded.autoregressive:
            raise UserError(
                f"model '{pretrained}': expected a masked diffusion model, found an autoregressive one, which "
                f"lm_eval --model hf evaluates exactly."
            )
        self._likelihood.refuse_unsuited(self._loaded)
        self._loaded.model.to(self._device).eval()
        self.stats = DecodingStats()
        self._rows: list[dict] = []

    # Requests of the harness

    def generate_until(self, requests: Sequence, disable_tqdm: bool = False) -> list[str]:
        """A completion for each request's ``(context, generation_kwargs)``, cut at its ``until`` strings."""
        texts: list[str] = []
        # Random draws depend on a prompt's number; each rank has numbers of its own.
        offset = self._ranks.rank << 24
        with tqdm(total=len(requests), desc="generate_until", disable=disable_tqdm or self.rank > 0) as bar:
            for run in same_arguments(requests, self._batch):
                options, most, until = decoding(
                    self._decoding, self._tokens_per_step, self._length, requests[run.start].args[1]
                )
                prompts = [encode_context(self._loaded.tokenizer, requests[i].args[0]) for i in run]
                for i, ids in zip(run, self._complete(prompts, options, offset + run.start), strict=True):
                    texts.append(cut(self._loaded.tokenizer.decode(ids[:most]), until))
                    self.cache_hook.add_partial("generate_until", requests[i].args, texts[-1])
                bar.update(len(run))
        self._say(str(self.stats))
        return texts

    def loglikelihood(self, requests: Sequence, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """``(log-likelihood, whether it is the greedy completion)`` of each request's continuation."""
        pairs = [encode_pair(self._loaded.tokenizer, *request.args) for request in requests]
        out = []
        for i, estimate in enumerate(self._estimates(pairs, "loglikelihood", disable_tqdm)):
            greedy = self._greedy and self._is_greedy(*pairs[i])
            out.append((estimate.value, greedy))
            self._keep(requests[i], estimate, greedy=greedy, tokens=len(pairs[i][1]))
            self.cache_hook.add_partial("loglikelihood", requests[i].args, out[-1])
        self._report(len(out))
        return out

    def loglikelihood_rolling(self, requests: Sequence, disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of each whole text, all of its tokens at once: no window, and nothing left out.

        Perplexities from the bound are upper bounds, not comparable with an autoregressive model's exact ones.
        """
        pairs = [([], self._loaded.tokenizer.encode(request.args[0])) for request in requests]
        out = []
        for i, estimate in enumerate(self._estimates(pairs, "loglikelihood_rolling", disable_tqdm)):
            out.append(estimate.value)
            self._keep(requests[i], estimate, tokens=len(pairs[i][1]))
            self.cache_hook.add_partial("loglikelihood_rolling", requests[i].args, out[-1])
        self._report(len(out))
        return out

    def estimate(self, prompt: list[int], continuation: list[int]) -> Estimate:
        """The estimate of log p(continuation | prompt) in nats, with the standard error of its noise."""
        return self._likelihood.of(self._loaded, [(prompt, continuation)])[0]

    # Answers to the requests

    def _estimates(self, pairs: Sequence[Pair], what: str, disable_tqdm: bool) -> Iterator[Estimate]:
        """The estimate of each pair, a batch at a time; a text without tokens has the log-likelihood 0."""
        with tqdm(total=len(pairs), desc=what, disable=disable_tqdm or self.rank > 0) as bar:
            for start in range(0, len(pairs), self._batch):
                some = pairs[start : start + self._batch]
                found = iter(self._likelihood.of(self._loaded, [pair for pair in some if pair[1]]))
                for pair in some:
                    yield next(found) if pair[1] else Estimate(value=0.0, stderr=0.0, n=1)
                    bar.update()

    def _complete(self, prompts: list[list[int]], options: DecodingOptions, first: int = 0) -> list[list[int]]:
        loaded = self._loaded
        ids = {"mask_id": loaded.mask_id, "eos_id": loaded.eos_id, "pad_id": loaded.pad_id, "ends": loaded.ends}
        return generate(loaded.model, prompts, options, first=first, stats=self.stats, **ids)

    def _is_greedy(self, prompt: list[int], continuation: list[int]) -> bool:
        n = len(continuation)
        block = getattr(self._loaded.model.config, "block_size", None) or n
        whole = -(-n // block) * block
        return self._complete([prompt], DecodingOptions(length=whole, steps=whole, block=block))[0][:n] == continuation

    def _keep(self, request, estimate: Estimate, **more) -> None:
        named = {name: getattr(request, name, None) for name in ("task_name", "doc_id", "idx")}
        self._rows.append(named | {"value": estimate.value, "stderr": estimate.stderr} | more)

    def _report(self, asked: int) -> None:
        """Print the mean standard error of the last ``asked`` estimates; write all so far if the user asked for it."""
        if asked:
            self._say(self._likelihood.told(fmean(row["stderr"] for row in self._rows[-asked:]), asked))
        if self._likelihood_out:
            path = Path(self._likelihood_out).expanduser()
            own = path if self._ranks.count == 1 else path.with_stem(f"{path.stem}-{self.rank}")
            write_jsonl(own, self._rows)

    def _say(self, line: str) -> None:
        if self.rank == 0:
            tqdm.write(f"stabledllm: {line}", file=sys.stderr)

    # Properties that the harness reads

    def apply_chat_template(self, chat_history: list[dict], add_generation_prompt: bool = True) -> str:
        """The conversation as text; if the assistant's turn is the last, it is to be continued."""
        if add_generation_prompt == (chat_history[-1]["role"] == "assistant"):
            raise UserError("lm_eval: expected a conversation that ends with a user's turn, or one to be continued.")
        return write_chat(chat_history)

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The name of the template that is applied; the harness stores it with its results."""
        if isinstance(chat_template, str):
            raise UserError(f"lm_eval: expected the model's own chat template, found the name '{chat_template}'.")
        return f"{self._loaded.name}'s own" if chat_template else ""

    @property
    def tokenizer_name(self) -> str:
        """The model's name as the harness uses it in the names of its caches."""
        return self._loaded.name.replace("/", "__")

    def get_model_info(self) -> dict:
        """The description of the model in the harness's results."""
        return {
            "pretrained": self._loaded.name,
            "decoding": DecodingSettings.model_validate(self._decoding).model_dump(exclude={"length", "steps"})
            | {"length": self._length, "tokens_per_step": self._tokens_per_step},
            "likelihood": self._likelihood.info
            | {"mean_stderr": fmean(row["stderr"] for row in self._rows) if self._rows else None},
        }

    @property
    def device(self) -> torch.device:
        """The device that the model is on."""
        return self._device

    @property
    def batch_size(self) -> int:
        """The number of prompts decoded together."""
        return self._batch

    @property
    def rank(self) -> int:
        """The rank of this process; the harness gives each rank its share of the requests."""
        return self._ranks.rank

    @property
    def world_size(self) -> int:
        """The number of processes."""
        return self._ranks.count

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensors of all ranks, one after the other."""
        if self.world_size == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.world_size)]
        torch.distributed.all_gather(parts, tensor.contiguous())
        return torch.stack(parts) if tensor.dim() == 0 else torch.cat(parts)

    def gather_object(self, obj, dst: int = 0) -> list | None:
        """The objects of all ranks on rank ``dst``, None on the others."""
        if self.world_size == 1:
            return [obj]
        objects = [None] * self.world_size if self.rank == dst else None
        torch.distributed.gather_object(obj, objects, dst=dst)
        return objects

    def barrier(self) -> None:
        """Wait for every rank."""
        self._ranks.agree(None)


def _device(asked: str | None, ranks: Ranks) -> torch.device:
    """The device asked for, or the launcher's own if there are several ranks or the machine has no such device.

    The harness always asks for ``cuda:0``.
    """
    if asked is None or ranks.count > 1:
        return ranks.device
    device, accelerator = torch.device(asked), torch.accelerator.current_accelerator()
    if device.type != "cpu" and (accelerator is None or accelerator.type != device.type):
        _LOG.warning(f"no {device.type} device on this machine: evaluating on {ranks.device}")
        return ranks.device
    return device
