"""What a quickstart of another size left is not taken for one's own."""

from __future__ import annotations

import json
from copy import deepcopy

import pytest

from stabledllm.cli import quickstart_jobs as quickstart
from stabledllm.config.settings import DecomposeSettings
from stabledllm.errors import UserError
from tests.cli.runner import in_process


@pytest.mark.parametrize("job", [quickstart.TEXT, quickstart.IMAGES], ids=["text", "images"])
def test_a_measurement_of_another_size_is_refused_by_its_key(tmp_path, job):
    small = deepcopy(job.common) | {"methods": list(job.methods)} | quickstart._SMALL_LAB
    path = tmp_path / "decomposition.json"
    assert not quickstart._is_there(path, small)
    path.write_text(json.dumps({"config": DecomposeSettings.model_validate(small).model_dump()}))
    assert quickstart._is_there(path, small)
    with pytest.raises(UserError, match=r"a quickstart of the same size with rows=8, found rows=48;"):
        quickstart._is_there(path, small | {"rows": 48})


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.processes
def test_the_quickstart_of_policy_gradients_at_reduced_size(tmp_path):
    """Both methods at the same forwards, on the same first responses; finished runs are not made again."""
    first = in_process("quickstart-rl", "--small", "--out", "q", cwd=tmp_path)
    assert first.returncode == 0, first.stderr[-3000:]
    results = json.loads((tmp_path / "q" / "experiment" / "results.json").read_text())
    assert results["status"] == {"finished": 4, "planned": 4}
    assert len({run["forward_passes"] for run in results["runs"]}) == 1, "equal compute"
    by_seed = {}
    for run in results["runs"]:
        by_seed.setdefault(run["seed"], set()).add(run["history"][0]["reward"])
    assert all(len(rewards) == 1 for rewards in by_seed.values()), "before the first step both draw the same"
    assert "Responses during training" in (tmp_path / "q" / "report.html").read_text(encoding="utf-8")
    assert in_process("quickstart-rl", "--small", "--out", "q", cwd=tmp_path).returncode == 0
    assert json.loads((tmp_path / "q" / "experiment" / "results.json").read_text())["runs"] == results["runs"]
