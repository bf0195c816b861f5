"""Arms: what they share, what tells them apart, and what an analysis asks for that is not there."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate

from benchmarks import arms
from benchmarks.arms import (
    Arm,
    arm_config,
    arm_folder,
    arm_labels,
    needed_arms,
    place,
    placed,
    read_arm_routing,
    refuse_overrides,
    short_name,
    with_arms,
    with_parent,
    write_placement,
)
from benchmarks.cell import compose_with_choices, fingerprint
from benchmarks.plan import cell_overrides, experiment_names, load_experiment, plan
from benchmarks.train import build_data, build_module
from benchmarks.train_router import adopt, refuse_strategy, text_order, with_scaled_rates, write_routing
from placement.topology import Placement
from traces.load import TraceSource
from traces.routing import RoutingTrace


def analysis(*overrides: str):
    return compose_with_choices("route_volume", ["trace.setting=micro8", "trace.scale=smoke", *overrides])


def arm(router: str, *overrides: str, continuation: int = 0):
    config, choices = analysis(*overrides)
    return arm_config(config, choices, router, 1, continuation)


def test_an_arm_blind_to_devices_serves_every_placement_and_topology():
    others = ("placement=lpt", "topology=one_node_8")
    assert fingerprint(arm("topk")) == fingerprint(arm("topk", *others))
    assert fingerprint(arm("cost_aware")) != fingerprint(arm("cost_aware", *others))


def test_a_part_is_told_apart_by_what_it_was_trained_with():
    changes = [(), ("arm.steps=7",), ("arm.num_items=9",), ("arm.start=scratch",), ("trace.setting=nano16",)]
    found = {fingerprint(arm("topk", *change)) for change in changes}
    assert len(found) == len(changes)


def test_arms_of_a_continuation_read_the_same_text_and_no_arm_its_parents():
    orders = {text_order(arm("topk", continuation=c)) for c in range(3)}
    assert len(orders) == 3
    assert text_order(arm("cost_aware", continuation=1)) == text_order(arm("topk", continuation=1))
    assert not orders & set(range(100)), "a parent's order is its seed"


def test_a_cell_needs_its_own_and_the_plain_arm_once_each():
    config, choices = analysis("router=variant/c2r_t3", "trace.seed=[0,2]", "arm.continuations=[0,1]")
    names = [router for router, _ in needed_arms(config, choices)]
    assert names == ["topk"] * 4 + ["variant/c2r_t3"] * 4
    config, choices = analysis("router=topk")
    assert len(needed_arms(config, choices)) == 1


def test_a_cell_is_measured_again_when_an_arm_changes():
    one, other = (with_arms(*analysis("router=variant/c2r_t3", f"arm.steps={steps}")) for steps in (5, 6))
    assert one.arm_runs != other.arm_runs
    assert fingerprint(one) != fingerprint(other)


def test_an_untrained_arm_says_how_to_train_just_that(tmp_path: Path):
    config, choices = analysis(f"outputs={tmp_path}", "placement=lpt", "arm.num_items=7", "router=cost_aware")
    made = arm_config(config, choices, "cost_aware", 1, 0)
    with pytest.raises(ValueError, match=r"not trained yet; run `python -m benchmarks.train_router ") as caught:
        arm_folder(made, "cost_aware", choices)
    command = str(caught.value).split("`")[1].split()[3:]
    # what that command composes is the arm that was missing
    told = with_parent(compose_with_choices("train_router", [*command, f"outputs={tmp_path}"])[0])
    assert fingerprint(told) == fingerprint(made)


def test_an_arm_is_another_one_when_its_parent_changes(monkeypatch):
    before = fingerprint(arm("topk"))
    monkeypatch.setattr(arms, "training_config", lambda *run: compose_with_choices("train", ["trainer.max_steps=9"])[0])
    assert fingerprint(arm("topk")) != before


@pytest.mark.parametrize("change", ["router.top_t=5", "placement.load_weight=1.0", "topology.nodes=4"])
def test_keys_that_no_arm_has_are_refused(change: str):
    chosen = ["router=variant/c2r_t3", "placement=colocated_load", "topology=two_nodes_2"]
    refuse_overrides(*analysis(*chosen))
    with pytest.raises(ValueError, match=rf"{change.split('.')[0]}\.\* cannot be changed here"):
        refuse_overrides(*analysis(*chosen, change))


def test_a_continuation_starts_at_a_third_of_its_settings_rate():
    parent, scratch = arm("topk"), arm("topk", "arm.start=scratch")
    peak = scratch.optimizer.learning_rate
    assert with_scaled_rates(scratch).optimizer.learning_rate == peak
    assert with_scaled_rates(parent).optimizer.learning_rate == pytest.approx(peak / 3, rel=1e-2)
    assert parent.optimizer.learning_rate == peak, "the arm's identity holds what was composed"


def test_labels_leave_out_the_folder_of_variants():
    assert short_name("variant/c2r_t3") == "c2r_t3"
    assert arm_labels(arm("topk"), "variant/c2r_t3") == ["micro8", "seed1", "c2r_t3", "c0"]


def toy_routing() -> RoutingTrace:
    rng = np.random.default_rng(0)
    chosen = rng.random((2, 2, 16, 8)).argsort(-1)[..., :2]
    source = TraceSource("toy", "TopK", 0, 16, 2, "none", "0")
    return RoutingTrace(np.arange(2), chosen, np.zeros(16, np.int16), 8, source)


def test_routing_is_dealt_to_as_many_devices_as_are_asked_for(tmp_path: Path):
    write_routing(tmp_path / "routing" / "held_out", toy_routing())
    trace = read_arm_routing(tmp_path, "held_out", 4)
    assert np.bincount(trace.source_device).tolist() == [4, 4, 4, 4]
    assert np.array_equal(trace.expert_indices, toy_routing().expert_indices)
    with pytest.raises(ValueError, match="16 tokens a batch cannot be dealt evenly to 3 devices"):
        read_arm_routing(tmp_path, "held_out", 3)


def test_an_arm_lives_where_its_router_was_told_or_where_it_is_planned_to(tmp_path: Path):
    told = Placement(np.array([[[0, 2], [1, -1]]]))
    write_placement(tmp_path / "written", told)
    # as arms that are already trained keep theirs
    np.savez_compressed(tmp_path / "placement.npz", slots=told.slots)
    config, _ = analysis("placement=colocated")
    topology = instantiate(config.topology)
    for folder in (tmp_path, tmp_path / "written"):
        assert np.array_equal(placed(config, Arm(arm("cost_aware"), folder), topology).slots, told.slots)
    write_routing(tmp_path / "routing" / "profile", toy_routing())
    planned = placed(config, Arm(arm("topk"), tmp_path), topology)
    assert np.array_equal(planned.slots, place(config, toy_routing()).slots)


def test_place_gives_a_planner_loads_and_sets():
    config, _ = analysis("placement=colocated")
    assert place(config, toy_routing()).slots.shape == (2, 4, 2)


@pytest.fixture
def modules(tmp_path: Path):
    def build(router: str):
        config = arm(router, f"outputs={tmp_path}")
        module = build_module(config, build_data(config))
        module.configure_model()
        return module

    return build


def test_a_plain_models_weights_fit_a_router_with_a_state_of_its_own(modules):
    plain, biased = modules("topk"), modules("loss_free")
    adopt(biased, plain.state_dict())
    gates = zip(plain.decoder.routers, biased.decoder.routers, strict=True)
    assert all(torch.equal(one.gate.weight, other.gate.weight) for one, other in gates)


@pytest.mark.parametrize("lost", ["transformer.blocks.0.mlp.router.gate.weight", "transformer.tokens.weight"])
def test_weights_that_are_missing_are_named(modules, lost: str):
    weights = modules("topk").state_dict()
    del weights[lost]
    with pytest.raises(ValueError, match=lost):
        adopt(modules("topk"), weights)


def test_plan_trains_each_arm_once_and_after_its_parent():
    found = plan(["paper2_volume", "paper2_quality"], "smoke", "outputs", "csv")
    assert [len({stage.fingerprint for stage in level}) for level in found.levels] == list(map(len, found.levels))
    assert all("benchmarks.train_router" in stage.command for stage in found.levels[1])
    parents = {(part, stage.name) for stage in found.levels[0] for part in stage.command if part.startswith("seed=")}
    assert {part for part, _ in parents} >= {p for s in found.levels[1] for p in s.command if p.startswith("seed=")}


def arms_of_experiments(scale: str) -> set[tuple[str, ...]]:
    """What tells the routers of all experiments' arms apart, as overrides."""
    found = set()
    for name in experiment_names():
        experiment = load_experiment(name)
        if experiment["entry"] in ("route_volume", "compare_quality"):
            for overrides in cell_overrides(experiment, scale):
                chosen = dict(part.removeprefix("trace.").split("=", 1) for part in overrides)
                found.add(tuple(f"{key}={chosen[key]}" for key in ("setting", "router", "topology") if key in chosen))
    return found


@pytest.mark.parametrize("scale", ["smoke", "cpu", "full"])
def test_every_arms_router_fits_its_model_and_its_devices(scale: str):
    found = arms_of_experiments(scale)
    assert len(found) > 10
    for overrides in found:
        config, _ = compose_with_choices("train_router", [*overrides, f"scale={scale}"])
        num_experts, num_devices = config.model.num_experts, instantiate(config.topology).num_devices
        device_of_expert = np.arange(num_experts)[None] * num_devices // num_experts
        known = {
            "collaboration": 1 - np.eye(num_experts, dtype=int)[None],
            "device_of_expert": device_of_expert,
            "node_of_expert": instantiate(config.topology).node_of_device[device_of_expert],
        }
        given = {name: value for name, value in known.items() if name in config.router}
        router = instantiate(config.router, **given)(config.model.dim, num_experts, 0)
        assert router.top_k == config.router.top_k, overrides


def test_an_arm_refuses_experts_spread_over_devices():
    config, _ = compose_with_choices("train_router", ["setting=micro8", "trainer=expert_parallel"])
    with pytest.raises(
        ValueError, match=r"models\.expert_parallel\.ExpertParallelStrategy cannot be used, take trainer=cpu"
    ):
        refuse_strategy(config)
    refuse_strategy(compose_with_choices("train_router", ["setting=micro8"])[0])
