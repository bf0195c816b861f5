"""Every configuration composes and builds; wrong ones say what is wrong."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.errors import ConfigCompositionException
from hydra.utils import instantiate
from omegaconf import DictConfig

from benchmarks.arms import with_arms
from benchmarks.cell import ROOT, compose, compose_with_choices, fingerprint
from benchmarks.plan import SCALES, cell_overrides, experiment_names, load_experiment, plan
from benchmarks.recorded import with_run
from benchmarks.train import build_data, build_module
from models.language_model import LanguageModel
from models.megablocks import is_installed


def names(group: str) -> list[str]:
    return sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml"))


@pytest.fixture(scope="session")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keeps the shipped text's tokens, which every model is checked against."""
    return tmp_path_factory.mktemp("outputs")


def build(outputs: Path, *overrides: str) -> tuple[DictConfig, LanguageModel]:
    config = compose("train", [*overrides, "data.root=data/text", f"outputs={outputs}"])
    return config, build_module(config, build_data(config))


# their weights are fetched by `make pretrained`; models/hugging_face builds tiny ones
PRETRAINED = ["smollm2_2of8"]


@pytest.mark.parametrize("setting", PRETRAINED)
def test_pretrained_setting_says_what_it_lacks(setting: str, outputs: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no tokenizer at none/tokenizer"):
        build(outputs, f"setting={setting}", "data.tokenizer=none/tokenizer.json")
    _, module = build(
        outputs,
        f"setting={setting}",
        "model.path=none",
        "data.tokenizer=data/tokenizer/bpe_2k.json",
        "model.vocab_size=2048",
    )
    with pytest.raises(FileNotFoundError, match=r"run `make pretrained`, or set model\.path"):
        module.configure_model()


@pytest.mark.parametrize("setting", [name for name in names("setting") if name not in PRETRAINED])
def test_setting_builds_its_model(setting: str, outputs: Path) -> None:
    config, module = build(outputs, f"setting={setting}")
    with torch.device("meta"):
        module.configure_model()
    assert module.decoder.num_moe_layers == config.model.num_layers // config.model.moe_every
    assert config.setting == setting


@pytest.mark.parametrize("experts", names("experts"))
@pytest.mark.parametrize("router", names("router"))
def test_router_and_experts_build_together(router: str, experts: str, outputs: Path) -> None:
    if experts == "megablocks" and not is_installed():
        pytest.skip("MegaBlocks is not installed; `make megablocks` installs it")
    config = compose("train", ["setting=micro8", f"router={router}", f"experts={experts}", f"outputs={outputs}"])
    profile = (
        {"collaboration": np.ones((2, 8, 8), int) - np.eye(8, dtype=int)} if "collaboration" in config.router else {}
    )
    module = build_module(config, build_data(config), **profile)
    module.configure_model()
    output = module(torch.zeros(1, 8, dtype=torch.long))
    for layer in output.moe:
        assert layer.load.sum() == (layer.routing.expert_indices >= 0).sum() > 0
    assert output.logits.isfinite().all()


@pytest.mark.parametrize("scale", SCALES)
def test_scale_composes_and_names_itself(scale: str) -> None:
    assert compose("train", [f"scale={scale}"]).scale == scale


def test_gpu_scale_is_the_same_setting_on_another_trainer() -> None:
    config = compose("train", ["setting=gpt3_125m_moe16", "scale=gpu"])
    assert config.trainer.accelerator == "gpu"
    assert config.trainer.precision == "bf16-mixed"
    assert config.trainer.max_steps >= 5000


@pytest.mark.parametrize("group", ["topology", "placement", "predictor", "trainer", "logger", "optimizer", "data"])
def test_group_members_instantiate_or_are_plain(group: str) -> None:
    root = "place_experts" if group in ("topology", "placement", "predictor") else "train"
    for name in names(group):
        node = compose(root, [f"{group}={name}"])[group]
        if "_target_" in node:
            assert instantiate(node) is not None


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", experiment_names())
def test_every_cell_of_every_experiment_composes(name: str, scale: str) -> None:
    experiment = load_experiment(name)
    cells = cell_overrides(experiment, scale)
    seen = set()
    for overrides in (cells[0], cells[-1]):
        arguments = [f"experiment={name}", f"trace.scale={scale}", *overrides]
        composed, choices = compose_with_choices(experiment["entry"], arguments)
        config = with_arms(composed, choices) if "arm" in composed else with_run(composed)
        assert config.experiment == name
        assert config.scale == scale
        seen.add(fingerprint(config))
    assert len(seen) == min(2, len(cells))


@pytest.mark.parametrize("scale", ["gpu", "paper"])
@pytest.mark.parametrize("name", ["paper2_walltime", "paper2_scaling", "paper2_step_time"])
def test_measured_experiments_instantiate_on_cuda_devices(
    name: str, scale: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = load_experiment(name)
    for overrides in cell_overrides(experiment, scale):
        config = compose(experiment["entry"], [f"experiment={name}", f"trace.scale={scale}", *overrides])
        topology = instantiate(config.topology)
        ground = instantiate(config.ground)(topology.nodes, topology.devices_per_node)
        assert (ground.backend, ground.num_ranks) == ("nccl", topology.num_devices)
        monkeypatch.setattr("torch.cuda.device_count", lambda needed=topology.num_devices: needed)
        with ground:
            assert {ground.environment(node)["MASTER_ADDR"] for node in range(topology.nodes)} == {"127.0.0.1"}


def test_full_scale_has_three_seeds_and_several_settings() -> None:
    cells = [
        dict(part.split("=", 1) for part in cell) for cell in cell_overrides(load_experiment("paper1_forecast"), "full")
    ]
    assert len({cell["trace.seed"] for cell in cells}) >= 3
    assert len({cell["trace.setting"] for cell in cells}) >= 2


@pytest.mark.parametrize(("scale", "limit"), [("smoke", 7), ("cpu", 30), ("full", 430)])
def test_the_suite_stays_within_its_minutes(scale: str, limit: float) -> None:
    declared = {name: load_experiment(name)["minutes"][scale] for name in experiment_names()}
    assert sum(declared.values()) <= limit, declared


def test_plan_trains_each_run_once() -> None:
    found = plan(experiment_names(), "smoke", "outputs", "csv")
    training, cells = found.levels[0], found.cells
    assert len({stage.fingerprint for stage in training}) == len(training) == 2
    assert len({stage.fingerprint for stage in cells}) == len(cells)
    assert all(stage.command[1:3] == ("-m", "benchmarks.train") for stage in training)


def test_text_and_model_must_share_a_vocabulary(outputs: Path) -> None:
    with pytest.raises(ValueError, match=r"model.vocab_size = 4096, the tokenizer .*bpe_2k.json has 2048"):
        build(outputs, "model.vocab_size=4096")


def test_identity_ignores_who_is_told_and_what_is_claimed() -> None:
    plain = compose("train", ["setting=micro8"])
    told = compose("train", ["setting=micro8", "logger=csv", "outputs=elsewhere"])
    other = compose("train", ["setting=micro8", "seed=1"])
    assert fingerprint(plain) == fingerprint(told) != fingerprint(other)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [(["trainer.max_stepz=3"], "max_stepz"), (["router=nope"], "nope"), (["setting=nope"], "nope")],
)
def test_misspelt_configuration_is_refused(overrides: list[str], named: str) -> None:
    with pytest.raises(ConfigCompositionException, match=named):
        compose("train", overrides)


def test_unknown_experiment_and_scale_are_named() -> None:
    with pytest.raises(ValueError, match=r"no experiment 'nope'; there are .*paper1_states"):
        load_experiment("nope")
    with pytest.raises(ValueError, match="no scale 'nope'"):
        plan(["paper1_states"], "nope", "outputs", "csv")
