"""``Lab``: everything the laboratory does, on a model and rows of one's own."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from stabledllm.data.rows import marks_in
from stabledllm.data.token_rows import lengths_of
from stabledllm.errors import UserError
from stabledllm.forward.meter import MeteredModel
from stabledllm.lab.measure.decompose import (
    LEAST_ROWS,
    check_methods,
    measure_gradients,
    measure_losses,
    record_of,
)
from stabledllm.lab.measure.laboratory import Laboratory
from stabledllm.lab.measure.options import GradientOptions, ProbeOptions
from stabledllm.lab.measure.plan import gradient_stages, loss_stages, probe_forwards
from stabledllm.lab.measure.probe_and_fit import probe_and_fit
from stabledllm.lab.measure.progress import Tell
from stabledllm.lab.measure.recommendation import QUANTITIES, choose, is_comparable
from stabledllm.lab.own.bound import measure_bound
from stabledllm.lab.own.checks import ShortRows, check_gradient, check_own_model
from stabledllm.lab.own.given import (
    Names,
    changed,
    check_kinds,
    check_numbers,
    config_of,
    decompose_options,
    methods_to_measure,
    need_head,
)
from stabledllm.lab.own.model import ModelFn, OwnModel, Parameters, name_of
from stabledllm.lab.own.paste import lines_to_paste
from stabledllm.lab.own.progress import shown
from stabledllm.lab.own.results import Decomposition, ELBOResult, FitResult, Recommended
from stabledllm.lab.own.rows import own_rows
from stabledllm.method_checks import check_fitted, check_marks, check_model
from stabledllm.noise.densities import TSampler
from stabledllm.noise.methods import Method
from stabledllm.noise.objective import Objective
from stabledllm.noise.parts import MethodOptions


class Lab:
    """The laboratory on a model and rows of one's own: ``decompose``, ``fit``, ``recommend`` and ``elbo`` of Python.

    Each measurement gives the record that the command line would store, with its errors. Of the same model, rows, seed
    and options it is the same measurement. The model is put into evaluation mode meanwhile, nothing is trained.

    >>> from stabledllm.models.tiny import TinyMDM, TinyMDMConfig
    >>> model = TinyMDM(TinyMDMConfig(num_hidden_layers=1, hidden_size=16, num_attention_heads=2))
    >>> rows = [([1, 2, 3, 4, 5 + i], 2) for i in range(8)]
    >>> lab = Lab(model, rows, mask_id=256, progress=False)
    >>> found = lab.decompose(methods=["standard", "fixedcount"], rows=8, rates=4, masks=2, steps=4, forwards=4)
    >>> [entry["method"] for entry in found.record["methods"]]
    ['standard', 'fixedcount']

    Args:
        model_fn: a module or function, called as ``model_fn(input_ids, attention_mask)`` with int64 ids and a bool mask
            (False at padding), each (N, L), by those names where it has them; it gives logits (N, L, V) or an object
            with ``.logits``. Rows are padded on the right.
        rows: a sequence of token rows, pairs ``(ids, prompt_length)`` or dictionaries with ``input_ids`` and
            ``prompt_length`` or ``labels``; or a tensor (B, L) beside ``prompt_length``.
        mask_id: the mask token. pad_id: fills short rows where the attention mask is False; default 0.
        prompt_length: beside a tensor of rows: one number, or one per row.
        shift: whether the logits at position i predict token i + 1 (Dream, axolotl).
        objective: what training minimises. method_options: options of the methods' parts.
        seed: of everything drawn. batch: forward passes of one of your training steps.
        tokens_per_batch: padded tokens in one forward; without it 4096, and 2048 where gradients are taken.
        head: the output layer or its name, for methods with ``ppots-head``; default ``get_output_embeddings()``.
        device: where ids are put; default the device of the model's first parameter, and the CPU for a function.
        name: what records call the model. data_name: what they call the rows.
        progress: called with (forward passes so far, all of them or None, what is measured); None shows a bar where
            tqdm is installed, False nothing.

    Attributes:
        notes: what is surprising about the model, also among every record's notes.

    Raises:
        UserError: a row that is wrong, with its index, or a model that does not do what the measurements assume: other
            shapes, NaN, dropout, logits that depend on padding.
    """

    def __init__(
        self,
        model_fn: ModelFn,
        rows: object,
        *,
        mask_id: int,
        pad_id: int = 0,
        prompt_length: int | Tensor | Sequence[int] | None = None,
        shift: bool = False,
        objective: Objective | None = None,
        method_options: MethodOptions | None = None,
        seed: int = 0,
        batch: int = 32,
        tokens_per_batch: int | None = None,
        head: nn.Module | str | None = None,
        device: torch.device | str | None = None,
        name: str | None = None,
        data_name: str = "own rows",
        progress: Tell | bool | None = None,
    ):
        if not callable(model_fn):
            raise UserError(
                f"model_fn: expected a function of (input_ids, attention_mask), found {type(model_fn).__name__}."
            )
        check_numbers(mask_id=mask_id, pad_id=pad_id, seed=seed, batch=batch, tokens_per_batch=tokens_per_batch)
        check_kinds(objective=(objective, Objective), method_options=(method_options, MethodOptions))
        self.rows = own_rows(rows, mask_id, prompt_length)
        self.model = OwnModel(model_fn, shift=shift, head=head, device=device)
        self.objective, self.method_options = objective or Objective(), method_options or MethodOptions()
        self.seed, self.batch, self.tokens_per_batch = seed, batch, tokens_per_batch
        self.name, self.data_name = name or name_of(model_fn), data_name
        self._tell = progress
        self._metered = MeteredModel(self.model, mask_id, pad_id, self.name)
        self._short = ShortRows(self.model, self.rows, mask_id, pad_id)
        self.notes = check_own_model(self._short, self.rows)
        self._kept: dict[tuple, tuple[Laboratory, dict]] = {}

    def decompose(self, *, methods: Names = None, **options: Any) -> Decomposition:
        """Where the noise of the loss comes from, and what each method does to it: ``stabledllm decompose``.

        Args:
            methods: names of methods to compare, as in ``method:``; Standard is always among them.
            options: ``rows``, ``rates``, ``masks``, ``design``, ``steps``, ``forwards`` (default ``batch``) and
                ``probe``, a dictionary of ``rows``, ``rates``, ``masks``, ``starts``, ...

        Raises:
            UserError: an unknown method or option, or fewer than 4 rows.
        """
        return Decomposition(self._decomposition(methods, options, gradient=False))

    def decompose_gradient(
        self, parameters: Parameters = None, *, methods: Names = None, **options: Any
    ) -> Decomposition:
        """The same with the gradient's noise beside the loss's: ``stabledllm decompose --gradient``.

        A loss that was measured last, under the same options and of the same weights, is not measured again.

        Args:
            parameters: those whose gradient is measured: parameters, a module that holds them, or of a module names,
                beginnings of names (``"layers.3"``) or patterns (``"*.weight"``); None takes all that are trained.
            options: further ``grad``, a dictionary of ``rows``, ``view_rows``, ``rates``, ``masks``, ``steps``, ...
        """
        return Decomposition(self._decomposition(methods, options, gradient=True, parameters=parameters))

    def recommend(
        self, by: str | None = None, *, parameters: Parameters = None, methods: Names = None, **options: Any
    ) -> Recommended:
        """What to train with: the simplest method that is surely less noisy at equal compute, ``stabledllm recommend``.

        Args:
            by: whose noise decides: ``gradient`` (the default) or ``loss``, for which no gradient is measured.
        """
        if by not in (None, *QUANTITIES):
            raise UserError(f"recommend: expected by={' or '.join(map(repr, QUANTITIES))}, found {by!r}.")
        record = self._decomposition(methods, options, gradient=by != "loss", parameters=parameters)
        if not is_comparable(record):
            raise UserError(
                "recommend: expected Standard and another unbiased method whose noise has an interval, found too few; "
                "name more methods, or measure more rows (rows=, probe={'rows': ...}, grad={'rows': ...})."
            )
        return Recommended(record | {"recommendation": self._choice(record, by)})

    def fit(
        self, method: str = "ppots", *, parameters: Parameters = None, batch: int | None = None, **options: Any
    ) -> FitResult:
        """Probe the rows and fit p(t) for a method's source, masker and views: ``stabledllm fit``.

        Args:
            parameters: those whose gradient ``ppots-gradient`` is fitted to, as for :meth:`decompose_gradient`.
            batch: rows of a training step, which decide how finely strata or a lattice divide t.
            options: ``rows``, ``rates``, ``masks``, ``design``, ``starts``, ``family``, ``uniform_share``,
                ``check_proxy``: the settings ``ppots`` of a recipe.

        Raises:
            UserError: a method without ppots, too few rows, or an unknown option.
        """
        parsed = self._method(method)
        check_fitted(parsed)
        probing = changed(ProbeOptions(), options, "fit")
        if parsed.signal == "output layer":
            need_head(self.model, method)
        of_gradient = parsed.signal == "gradient" or (parsed.signal == "output layer" and probing.check_proxy)
        if parameters is not None and not of_gradient:
            raise UserError(f"fit: expected no parameters for '{parsed.name}', which probes no gradient of them.")
        patterns = self._gradient_of(parameters) if of_gradient else None
        batch = self.batch if batch is None else batch
        check_numbers(batch=batch)
        total = probe_forwards(parsed, probing, self.rows)
        with shown(f"probe {parsed.name}", total, self._tell) as progress, self.model.kept_gradients():
            density = probe_and_fit(
                self._metered,
                self.rows,
                parsed,
                probing,
                self.seed,
                batch,
                progress=progress,
                tokens_per_batch=self.tokens_per_batch,
                parameters=patterns,
            )
        return FitResult(density.record, density)

    def elbo(
        self,
        method: str = "lowdisc+fixedcount",
        budget: int = 8,
        *,
        step: int = 0,
        density: TSampler | None = None,
        replicates: int | None = None,
    ) -> ELBOResult:
        """The bound on each row's log-likelihood from ``budget`` forward passes a row: :func:`stabledllm.elbo`.

        It is the bound whatever the objective, of which it takes ``eps`` alone.

        Args:
            density: the fitted p(t) of a method with ppots, ``lab.fit(method).sampler``.
        """
        bound, record = measure_bound(
            self._metered, self.rows, method, budget, seed=self.seed, step=step, eps=self.objective.eps,
            density=density, replicates=replicates, tokens_per_batch=self.tokens_per_batch, data=self.data_name,
            notes=self.notes, tell=self._tell,
        )  # fmt: skip
        return ELBOResult(record, bound)

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _gradient_of(self, parameters: Parameters) -> list[str] | None:
        patterns = self.model.measure_gradient_of(parameters)
        check_gradient(self._short, patterns)
        return patterns

    def _method(self, name: str) -> Method:
        method = Method.parse(name, self.method_options, self.objective)
        check_model(method, self.name, autoregressive=False)
        check_marks(method, marks_in(self.rows))
        return method

    def _decomposition(self, names: Names, given: dict, *, gradient: bool, parameters: Parameters = None) -> dict:
        started = time.perf_counter()
        if not gradient and ("grad" in given or parameters is not None):
            raise UserError("decompose: expected no grad and no parameters where the gradient is not measured.")
        options = decompose_options(given, self.seed, self.batch)
        methods, notes = methods_to_measure(names, self._method, self.model, self.objective)
        check_methods(methods, gradient)
        if len(self.rows) < LEAST_ROWS:
            raise UserError(f"rows: expected at least {LEAST_ROWS} to measure variances, found {len(self.rows)}.")
        parameters = options.grad.parameters if parameters is None else parameters
        patterns = self._gradient_of(parameters) if gradient else None
        key = (replace(options, grad=GradientOptions()), *(method.name for method in methods), self._short.state())
        plan = [] if key in self._kept else loss_stages(options, methods, self.rows)
        plan += gradient_stages(options, methods, self.rows) if gradient else []
        with shown("decompose", plan, self._tell) as progress, self.model.kept_gradients():
            if key not in self._kept:
                lab = Laboratory(options, self._metered, self.rows, self.objective, progress, self.tokens_per_batch)
                self._kept = {key: (lab, measure_losses(lab, methods))}
            lab, entries = self._kept[key]
            lab.progress, lab.options = progress, replace(options, grad=replace(options.grad, parameters=patterns))
            if gradient:
                entries = entries | measure_gradients(lab, methods, entries)
        entries = entries | {"notes": [*self.notes, *notes, *entries["notes"]]}
        record = record_of(
            entries,
            model=self.name,
            data=self.data_name,
            config=config_of(lab.options, methods, gradient),
            seed=options.seed,
            device=self._device,
            seconds=time.perf_counter() - started,
            forwards=lab.meter.forwards,
            note=f"{len(self.rows)} rows of up to {max(lengths_of(self.rows))} tokens",
        )
        if is_comparable(record):
            record["recommendation"] = self._choice(record, None)
        return record

    def _choice(self, record: dict, by: str | None) -> dict:
        def lines(record: dict, method: str, views: float, forwards: int) -> str:
            return lines_to_paste(self._method(method), self._metered.mask_id, max(1, round(forwards / views)))

        return choose(record, by, lambda name: name, lines).as_dict()
