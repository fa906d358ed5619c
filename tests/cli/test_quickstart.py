"""What a quickstart of another size left is not taken for one's own."""

from __future__ import annotations

import json
from copy import deepcopy

import pytest

from stabledllm.cli import quickstart_jobs as quickstart
from stabledllm.config.settings import DecomposeSettings
from stabledllm.errors import UserError


@pytest.mark.parametrize("job", [quickstart.TEXT, quickstart.IMAGES], ids=["text", "images"])
def test_a_measurement_of_another_size_is_refused_by_its_key(tmp_path, job):
    small = deepcopy(job.common) | {"methods": list(job.methods)} | quickstart._SMALL_LAB
    path = tmp_path / "decomposition.json"
    assert not quickstart._is_there(path, small)
    path.write_text(json.dumps({"config": DecomposeSettings.model_validate(small).model_dump()}))
    assert quickstart._is_there(path, small)
    with pytest.raises(UserError, match=r"a quickstart of the same size with rows=8, found rows=48;"):
        quickstart._is_there(path, small | {"rows": 48})
