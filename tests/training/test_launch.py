"""The shipped launch configurations, read by accelerate's own parser and turned into its own plugins."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DeepSpeedPlugin, DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.deepspeed import HfDeepSpeedConfig
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from torch.distributed.fsdp.fully_sharded_data_parallel import StateDictType
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

from stabledllm.config import shipped_launches
from stabledllm.config.settings import TrainSettings
from stabledllm.errors import UserError
from stabledllm.models.tiny import TinyMDM, TinyMDMConfig
from stabledllm.training import devices
from stabledllm.training.run import training_arguments
from tests.cli.runner import assert_refused, in_process

KINDS = {
    "accelerate/ddp": DistributedType.MULTI_GPU,
    "accelerate/multi_node": DistributedType.MULTI_GPU,
    "accelerate/fsdp2": DistributedType.FSDP,
    "accelerate/zero2": DistributedType.DEEPSPEED,
    "accelerate/zero2_offload": DistributedType.DEEPSPEED,
    "accelerate/zero3": DistributedType.DEEPSPEED,
    "accelerate/zero3_offload": DistributedType.DEEPSPEED,
}


class RecipeValues(HfTrainerDeepSpeedConfig, HfDeepSpeedConfig):
    """transformers' code that fills in a recipe's values, on the base class that it has where DeepSpeed is."""


@pytest.fixture
def environment(tmp_path):
    """What ``accelerate launch`` would put into the environment of every rank."""

    def of(name: str, *options: str) -> dict[str, str]:
        path = tmp_path / "config.yaml"
        path.write_text(shipped_launches()[name])
        line = ["--config_file", str(path), *options, "-m", "stabledllm", "train", "sft-synthetic"]
        arguments, defaults, _ = _validate_launch_command(launch_command_parser().parse_args(line))
        if arguments.use_deepspeed:
            arguments.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
            return prepare_deepspeed_cmd_env(arguments)[1]
        return prepare_multi_gpu_env(arguments)

    with mock.patch.dict(os.environ):
        yield of


def test_every_configuration_is_here():
    assert shipped_launches().keys() == KINDS.keys()


@pytest.mark.parametrize("name", sorted(KINDS))
def test_accelerate_reads_it(tmp_path, name):
    path = tmp_path / "config.yaml"
    path.write_text(shipped_launches()[name])
    config = load_config_from_file(str(path))
    assert isinstance(config, ClusterConfig)
    assert config.distributed_type == KINDS[name]
    assert config.num_processes % config.num_machines == 0
    assert (config.num_machines > 1) == (name == "accelerate/multi_node")
    known = {action.dest for action in launch_command_parser()._actions}
    for key in config.fsdp_config | config.deepspeed_config:
        assert key in known, f"accelerate launch knows no {key}"


def test_fsdp2_becomes_the_plugin_that_was_meant(environment):
    with mock.patch.dict(os.environ, environment("accelerate/fsdp2", "--num_processes", "4")):
        plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.state_dict_type == StateDictType.SHARDED_STATE_DICT
    assert plugin.auto_wrap_policy is transformer_auto_wrap_policy
    with torch.device("meta"):
        model = TinyMDM(TinyMDMConfig(num_hidden_layers=3))
    plugin.set_auto_wrap_policy(model)
    wrapped = [m for m in model.modules() if plugin.auto_wrap_policy(m, recurse=False, nonwrapped_numel=0)]
    assert wrapped == list(model.blocks), "the model's own blocks, and nothing else"


@pytest.mark.parametrize(
    ("name", "stage", "optimizer", "weights", "whole"),
    [
        ("accelerate/zero2", 2, "none", "none", False),
        ("accelerate/zero2_offload", 2, "cpu", "none", False),
        ("accelerate/zero3", 3, "none", "none", True),
        ("accelerate/zero3_offload", 3, "cpu", "cpu", True),
    ],
)
def test_deepspeed_gets_a_whole_configuration_from_the_recipe(
    tmp_path, environment, monkeypatch, name, stage, optimizer, weights, whole
):
    """Without the package: the JSON that DeepSpeed would be given, with nothing left to guess."""
    monkeypatch.setattr("transformers.integrations.deepspeed.dep_version_check", lambda package: None)
    with mock.patch.dict(os.environ, environment(name)):
        plugin = DeepSpeedPlugin()
    zero = plugin.deepspeed_config["zero_optimization"]
    assert zero["stage"] == stage
    assert zero["offload_optimizer"]["device"] == optimizer
    assert zero["offload_param"]["device"] == weights
    assert zero["stage3_gather_16bit_weights_on_model_save"] is whole, "the final model is written whole"
    assert not plugin.zero3_init_flag
    settings = TrainSettings(batch=32, micro_batch=4, out=str(tmp_path), trainer={"max_grad_norm": 0.7})
    arguments = training_arguments(settings)
    config = RecipeValues(plugin.deepspeed_config)
    config.trainer_config_process(arguments)
    config.trainer_config_finalize(arguments, TinyMDM(TinyMDMConfig(num_hidden_layers=1, hidden_size=16)), 10)
    assert "auto" not in json.dumps(config.config | {"steps_per_print": 0})
    assert config.config["train_micro_batch_size_per_gpu"] == 4
    assert config.config["gradient_accumulation_steps"] == 8
    assert config.config["train_batch_size"] == 32
    assert config.config["gradient_clipping"] == 0.7


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("trainer.fp16=true", ["trainer.fp16", "expected an accelerator"]),
        ("trainer.tf32=true", ["key 'trainer'", "tf32"]),
        ("trainer.deepspeed=ds.json", ["key 'trainer'", "deepspeed"]),
        ("trainer.optim=adamx", ["key 'trainer.optim'", "adamx"]),
        ("trainer.report_to=wandb", ["key 'trainer.report_to'", "wandb"]),
    ],
)
def test_what_this_machine_lacks_is_one_sentence(tmp_path, override, words):
    if torch.cuda.is_available():
        pytest.skip("the sentences of a machine without a GPU")
    (tmp_path / "ds.json").write_text("{}")
    small = ["batch=20", "data.train_rows=20", "data.validation_rows=2", "data.test_rows=2", "out=out"]
    result = in_process("train", "sft-synthetic", *small, override, cwd=tmp_path)
    assert_refused(result, *words)


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"ACCELERATE_USE_FSDP": "true", "WORLD_SIZE": "2"}, "FSDP.*found CPUs"),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "WORLD_SIZE": "2"}, "DEEPSPEED.*found CPUs"),
        ({"WORLD_SIZE": "3"}, "expected 3 processes to train together, found 2"),
    ],
)
def test_what_accelerate_would_drop_without_a_word_is_refused(monkeypatch, environment, words):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    state = SimpleNamespace(distributed_type=DistributedType.MULTI_CPU)
    monkeypatch.setattr(devices, "PartialState", lambda: state)
    arguments = SimpleNamespace(world_size=2, fp16=False, device=torch.device("cpu"))
    with pytest.raises(UserError, match=words):
        devices.refuse_silent_changes(arguments)
