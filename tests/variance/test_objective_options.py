"""Every option of the objective acts on every path that takes one, or is refused: none is ignored."""

from __future__ import annotations

import json

import pytest
import torch

from stabledllm.errors import UserError
from stabledllm.evaluation.validation import row_nll
from stabledllm.forward.blocks import UnitMeter
from stabledllm.forward.elbo import elbo
from stabledllm.forward.meter import LossMeter
from stabledllm.gradient.density import norm_profile
from stabledllm.gradient.output_layer import OutputLayerNorms
from stabledllm.gradient.per_row import RowGradients
from stabledllm.gradient.profile import gradient_profile
from stabledllm.gradient.sketch import ProjectedGradients
from stabledllm.gradient.step_meter import StepMeter
from stabledllm.integrations.noise import Noise
from stabledllm.method_checks import check_autoregressive
from stabledllm.noise.densities import Uniform
from stabledllm.noise.methods import Method
from stabledllm.noise.objective import Objective
from stabledllm.ppots.profile import probe
from stabledllm.variance.components import decompose, nested_losses
from stabledllm.variance.drawn import measure
from tests.cli.runner import assert_refused, in_process
from tests.fakes.tiny import metered, model, rows

OPTIONS = {
    "weighting": Objective("unweighted"),
    "power": Objective("power", power=0.5),
    "normalization": Objective(normalization="token"),
    "eps": Objective(eps=0.3),
}
DESIGN = {"rows": 5, "rates": 2, "masks": 2, "seed": 0}
PROBE = DESIGN | {"rates": 4}


def standard(objective: Objective) -> Method:
    return Method.parse("standard", objective=objective)


def of(kind, objective: Objective, **more):
    return kind(metered(model(8)), rows(5), objective, **more)


def nested(objective):
    found = decompose(nested_losses(of(LossMeter, objective), standard(objective), **DESIGN))
    return found.total.value, found.data.value, found.mean.value


def drawn(objective):
    found = measure(of(LossMeter, objective), standard(objective), Uniform(), rows=4, steps=4, seed=0)
    return (found.per_row_variance.value,)


def profiled(objective):
    return probe(of(LossMeter, objective), standard(objective), **PROBE).moments.curve().value.sum()


def blocks(objective):
    units = of(UnitMeter, objective, block_size=4)
    return probe(units, standard(objective), **PROBE).moments.curve().value.sum()


def gradients(kind):
    def path(objective):
        counted = Method.parse("fixedcount", objective=objective)
        return gradient_profile(of(kind, objective), counted, **DESIGN).gram.sum()

    return path


def head(objective):
    return norm_profile(of(OutputLayerNorms, objective), standard(objective), **PROBE).moments.curve().value.sum()


def steps(objective):
    return (of(StepMeter, objective).measure(standard(objective), Uniform(), rows=4, steps=4, seed=0).variance().value,)


def evaluated(objective):
    return row_nll(of(LossMeter, objective)).sum()


def own_loop(objective):
    maskable = torch.arange(8) >= torch.tensor([[2], [6]])
    noise = Noise(mask_id=9, objective=objective).draw(torch.ones(2, 8, dtype=torch.int64), maskable, step=0)
    return noise.loss_of(1.0 + torch.arange(int(noise.mask.sum()), dtype=torch.float64))


PATHS = {
    "decompose": nested,
    "measured": drawn,
    "fit": profiled,
    "fit in blocks": blocks,
    "gradient": gradients(RowGradients),
    "projected gradient": gradients(ProjectedGradients),
    "ppots-head": head,
    "steps": steps,
    "evaluation": evaluated,
    "a loop of one's own": own_loop,
}


@pytest.mark.parametrize("path", PATHS)
def test_every_option_acts_on_every_path(path):
    plain = torch.as_tensor(PATHS[path](Objective()))
    for option, objective in OPTIONS.items():
        found = torch.as_tensor(PATHS[path](objective))
        assert not torch.isclose(found, plain, rtol=1e-6).any(), option


def test_a_method_of_another_objective_is_not_measured():
    with pytest.raises(ValueError, match="expected a method under"):
        probe(of(LossMeter, OPTIONS["eps"]), standard(Objective()), **PROBE)


@pytest.mark.parametrize("option", ["weighting", "power", "eps"])
def test_an_autoregressive_model_refuses_what_weighs_mask_ratios(option):
    check_autoregressive(Objective(normalization="token"))
    with pytest.raises(UserError, match="nothing but 'normalization'"):
        check_autoregressive(OPTIONS[option])


def test_an_elbo_has_its_eps():
    net, data = model(8), rows(3)
    one, other = (elbo(net, data, "fixedcount", 4, eps=eps, mask_id=256, pad_id=257).value for eps in (0.0, 0.3))
    assert not torch.isclose(one, other).any()


@pytest.mark.parametrize(
    "command",
    [["decompose"], ["fit", "method=ppots"], ["fit", "method=mirror+ppots"]],
    ids=["decompose", "fit", "fit mirror"],
)
def test_an_infinite_variance_is_refused(command, tmp_path):
    """At eps = 0 A is infinite for independent masks: there is no finite figure for it."""
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"{i}", "response": "abc"}) + "\n" for i in range(5)))
    found = in_process(*command, f"data.train=jsonl:{data}", "objective.eps=0", f"out={tmp_path}/out", cwd=tmp_path)
    assert_refused(found, "objective.eps", "infinite")


@pytest.mark.parametrize("method", ["lowdisc+ppots", "strats+ppots", "lowdisc+ppots+fixedcount"])
def test_two_rows_are_too_few_for_a_density_of_dependent_rates(method, tmp_path):
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"{i}", "response": "abc"}) + "\n" for i in range(2)))
    found = in_process("fit", f"method={method}", f"data.train=jsonl:{data}", f"out={tmp_path}/out", cwd=tmp_path)
    assert_refused(found, "at least 3 training rows", method)


def test_four_rows_of_which_nothing_can_be_told_are_still_decomposed(tmp_path):
    """No interval, no recommendation; but the measurement is written."""
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"{i}", "response": "abcdef"[: 1 + i]}) + "\n" for i in range(4)))
    small = ["steps=4", "rates=2", "masks=2", "probe.rates=4", "probe.masks=2", "probe.starts=2"]
    words = [f"data.train=jsonl:{data}", "methods=[standard,lowdisc+ppots,strats]", f"out={tmp_path}/out", *small]
    found = in_process("decompose", *words, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    record = json.loads((tmp_path / "out" / "decomposition.json").read_text())
    for entry in record["methods"][1:]:
        ratio = entry["relative_to_standard"]
        assert ratio["value"] is None or ratio["value"] >= 0
        assert (entry["pays"] is None) == (ratio["ci_low"] is None or ratio["ci_low"] <= 1 <= ratio["ci_high"])
