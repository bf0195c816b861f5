"""What every planner of conf/placement must hold to: a new YAML is tested without a new test."""

from pathlib import Path

import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from placement.balance import device_load
from placement.movement import moved_slots
from placement.topology import Placement, Topology
from traces.load import TraceSource
from traces.routing import RoutingTrace

PLANNERS = sorted((Path(__file__).parents[2] / "conf/placement").glob("*.yaml"))
TOPOLOGY = Topology(2, 2, 450e9, 100e9, 3.4e-6, 14e-6)
NUM_LAYERS, NUM_EXPERTS, NUM_TOKENS = 3, 16, 200


@pytest.fixture(scope="module", params=PLANNERS, ids=lambda path: path.stem)
def planner(request, routing):
    planner = instantiate(OmegaConf.load(request.param))
    try:
        planner(routing.loads()[0], TOPOLOGY, slots_per_device=4, routing=routing.sets())
    except ImportError as missing:
        pytest.skip(str(missing))
    return planner


@pytest.fixture(scope="module")
def routing():
    """Skewed top-2 routings."""
    rng = np.random.default_rng(0)
    preference = rng.gumbel(size=(1, NUM_LAYERS, NUM_TOKENS, NUM_EXPERTS)) + rng.normal(size=NUM_EXPERTS)
    chosen = np.argsort(-preference, axis=-1)[..., :2].astype(np.int16)
    source = TraceSource("nano", "topk", 0, NUM_TOKENS, 2, "abc", "0.1.0")
    return RoutingTrace(np.arange(1), chosen, np.zeros(NUM_TOKENS, np.int16), NUM_EXPERTS, source)


@pytest.fixture
def load(routing):
    layers = routing.expert_indices[0].reshape(NUM_LAYERS, -1)
    return np.stack([np.bincount(row, minlength=NUM_EXPERTS) for row in layers]).astype(float)


@pytest.mark.parametrize("slots_per_device", [4, 6])
def test_a_plan_places_every_expert(planner, load, routing, slots_per_device):
    plan = planner(load, TOPOLOGY, slots_per_device=slots_per_device, routing=routing.sets())
    assert isinstance(plan, Placement)
    assert plan.slots.shape == (NUM_LAYERS, TOPOLOGY.num_devices, slots_per_device)
    assert plan.num_experts == NUM_EXPERTS
    np.testing.assert_allclose(device_load(load, plan).sum(-1), load.sum(-1))


def test_a_plan_repeats_and_leaves_its_arguments_alone(planner, load, routing):
    before = load.copy()
    plans = [planner(load, TOPOLOGY, slots_per_device=4, routing=routing.sets()) for _ in range(2)]
    np.testing.assert_array_equal(plans[0].slots, plans[1].slots)
    np.testing.assert_array_equal(load, before)


def test_a_plan_may_start_from_the_current_one(planner, load, routing):
    current = planner(load, TOPOLOGY, slots_per_device=4, routing=routing.sets())
    kept = current.slots.copy()
    again = planner(load[::-1].copy(), TOPOLOGY, slots_per_device=4, routing=routing.sets(), current=current)
    assert again.slots.shape == kept.shape
    np.testing.assert_array_equal(current.slots, kept)


@pytest.mark.parametrize("slots_per_device", [4, 6])
def test_nothing_moves_while_the_load_stays(planner, load, routing, slots_per_device):
    given = {"slots_per_device": slots_per_device, "routing": routing.sets()}
    current = planner(load, TOPOLOGY, **given)
    again = planner(load, TOPOLOGY, **given, current=current)
    assert moved_slots(current, again).tolist() == [0] * NUM_LAYERS


def test_a_plan_may_have_more_slots_than_the_current_one(planner, load, routing):
    current = planner(load, TOPOLOGY, slots_per_device=4, routing=routing.sets())
    wider = planner(load[::-1].copy(), TOPOLOGY, slots_per_device=6, routing=routing.sets(), current=current)
    assert wider.slots.shape == (NUM_LAYERS, TOPOLOGY.num_devices, 6)
    assert wider.num_experts == NUM_EXPERTS


def test_several_loads_give_one_plan(planner, load, routing):
    loads = np.stack([load, load[:, ::-1], 2 * load])
    plan = planner(loads, TOPOLOGY, slots_per_device=5, routing=routing.sets())
    assert plan.slots.shape == (NUM_LAYERS, TOPOLOGY.num_devices, 5)


def test_a_layer_without_tokens_is_placed(planner, load, routing):
    load[1] = 0.0
    assert planner(load, TOPOLOGY, slots_per_device=4, routing=routing.sets()).num_layers == NUM_LAYERS


def test_too_few_slots_are_refused(planner, load, routing):
    with pytest.raises(ValueError, match=r"16.*4.*3"):
        planner(load, TOPOLOGY, slots_per_device=3, routing=routing.sets())
