"""Exact moments of the loss and of its gradient for rows in blocks, by enumeration of all masks of every block."""

from __future__ import annotations

import numpy as np
import torch

from stabledllm.data.rows import TokenRow
from stabledllm.gradient.parameters import chosen_parameters
from stabledllm.models.tiny import TinyMDM
from stabledllm.noise.blocks import Blocks
from tests.oracle import Setting, ToyRow, all_masks, conditional, moments, panels

PARAMETERS = ["*norm*"]
"""The parameters whose gradient is enumerated: few, and of every layer."""


def gradient_tables(model: TinyMDM, row: TokenRow) -> list[ToyRow]:
    """The oracle's row of each block of a response, with the gradients of its cross-entropies."""
    ids = torch.tensor([row.input_ids])
    response = (torch.arange(len(row)) >= row.prompt_length)[None]
    real = torch.ones_like(response)
    block_ids = Blocks.of(model, model.config.block_size).ids(response, real)
    parameters = list(chosen_parameters(model, PARAMETERS).values())
    tables = []
    for block in block_ids[response].unique().tolist():
        own = (response & (block_ids == block))[0].nonzero()[:, 0]
        table = np.zeros((2 ** len(own), len(own), 1 + sum(p.numel() for p in parameters)))
        for state, masked in enumerate(torch.from_numpy(all_masks(len(own)))):
            if not masked.any():
                continue
            selected = torch.zeros_like(response)
            selected[0, own[masked]] = True
            noisy = torch.where(selected, model.config.mask_token_id, ids)
            nll = model(noisy, real, selected=selected, targets=ids, block_ids=block_ids).nll
            for place, one in zip(masked.nonzero()[:, 0].tolist(), nll, strict=True):
                gradient = torch.autograd.grad(one, parameters, retain_graph=True)
                table[state, place] = [float(one.detach()), *torch.cat([g.flatten() for g in gradient]).tolist()]
        tables.append(ToyRow(table))
    return tables


class ExactGradient:
    """The parts of the gradient's noise, as traces, and its mean; each row counts the same."""

    def __init__(self, model: TinyMDM, rows: list[TokenRow], setting: Setting):
        t, dt = panels(setting.kinks(2), 0.0, 1.0)
        self.tables = [gradient_tables(model, row) for row in rows]
        self.parts = [np.array([toy.size for toy in row]) for row in self.tables]
        self.parts = [sizes / sizes.sum() for sizes in self.parts]
        pattern, own, shared, single, hidden, self.means = [], [], [], [], [], []
        for tables, part in zip(self.tables, self.parts, strict=True):
            each = [conditional(setting, toy, t) for toy in tables]
            g = np.stack([mean[:, 1:] for mean, _ in each]) * part[:, None, None]
            square = np.stack([square[:, 1:].sum(-1) for _, square in each]) * part[:, None] ** 2
            mean = np.einsum("mtf,t->mf", g, dt)
            pattern.append((square - (g**2).sum(-1)).sum(0) @ dt)
            nothing = np.stack([(1 - setting.p_mask(t)) ** toy.size for toy in tables])
            hidden.append((square * nothing).sum(0) @ dt)
            rate = (g**2).sum(-1) @ dt - (mean**2).sum(-1)
            own.append(rate.sum())
            single.append((rate / part).sum())
            whole = g.sum(0)
            shared.append((whole**2).sum(-1) @ dt - (mean.sum(0) ** 2).sum())
            self.means.append(mean.sum(0))
        averages = (np.mean(each) for each in (pattern, own, shared, single, hidden))
        self.pattern, self.own, self.shared, self.single, self.hidden = averages
        self.data = np.var(self.means, axis=0).sum()
        self.mean_square = (np.mean(self.means, 0) ** 2).sum()

    def of_method(self, setting: Setting) -> float:
        """tr Var of the gradient of one row, every block of which has a t of its own, iid."""
        noise = [
            sum(s**2 * moments(setting, toy)[1][1:].sum() for s, toy in zip(part, row, strict=True))
            for part, row in zip(self.parts, self.tables, strict=True)
        ]
        return np.mean(noise) + self.data
