"""Placements in the files of serving engines: what is written says which expert each physical slot holds."""

import json

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from placement.export import write_sglang, write_tensorrt_llm, write_vllm_ascend
from placement.topology import Placement

WRITERS = [write_sglang, write_tensorrt_llm, write_vllm_ascend]
SPARSE = Placement(np.array([[[0, 1], [2, -1]]]))


@st.composite
def placements(draw):
    """Full devices; experts that one device leaves out are replicas on another."""
    num_layers, num_devices = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    slots_per_device = draw(st.integers(1, 4))
    num_experts = draw(st.integers(slots_per_device, num_devices * slots_per_device))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    # going round the experts, a device never meets one twice
    dealt = np.arange(num_devices * slots_per_device) % num_experts
    order = np.stack([rng.permutation(num_experts) for _ in range(num_layers)])
    return Placement(order[:, dealt].reshape(num_layers, num_devices, slots_per_device))


@settings(max_examples=25)
@given(placements())
def test_sglang_reads_the_same_placement_back(tmp_path_factory, placement):
    path = tmp_path_factory.mktemp("plan") / "sub" / "location.json"
    write_sglang(path, placement)
    found = json.loads(path.read_text())
    # SGLang passes every key on as an argument
    assert list(found) == ["physical_to_logical_map"]
    np.testing.assert_array_equal(np.reshape(found["physical_to_logical_map"], placement.slots.shape), placement.slots)


@settings(max_examples=25)
@given(placements(), st.integers(0, 60))
def test_tensorrt_llm_reads_the_same_placement_back(tmp_path_factory, placement, first):
    path = tmp_path_factory.mktemp("plan") / "eplb.yaml"
    layers = list(range(first, first + placement.num_layers))
    write_tensorrt_llm(path, placement, layers)
    found = yaml.safe_load(path.read_text())
    assert sorted(found) == ["initial_global_assignments", "layer_updates_per_iter", "num_slots"]
    assert found["num_slots"] == placement.num_devices * placement.slots_per_device
    assert found["layer_updates_per_iter"] == 0
    assert list(found["initial_global_assignments"]) == layers
    slots = np.reshape(list(found["initial_global_assignments"].values()), placement.slots.shape)
    np.testing.assert_array_equal(slots, placement.slots)


@settings(max_examples=25)
@given(placements())
def test_vllm_ascend_reads_the_same_placement_back(tmp_path_factory, placement):
    path = tmp_path_factory.mktemp("plan") / "map.json"
    write_vllm_ascend(path, placement)
    found = json.loads(path.read_text())
    assert found["moe_layer_count"] == len(found["layer_list"]) == placement.num_layers
    for number, layer in enumerate(found["layer_list"]):
        assert layer["layer_id"] == number
        assert layer["device_count"] == placement.num_devices
        assert [device["device_id"] for device in layer["device_list"]] == list(range(placement.num_devices))
    slots = [[device["device_expert"] for device in layer["device_list"]] for layer in found["layer_list"]]
    np.testing.assert_array_equal(slots, placement.slots)


@pytest.mark.parametrize("write", WRITERS)
def test_an_empty_slot_is_refused_and_nothing_written(tmp_path, write):
    with pytest.raises(ValueError, match=r"layer 0: slot 1 of device 1 is empty \(1 in all\)"):
        write(tmp_path / "plan", SPARSE)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("write", WRITERS[1:])
@pytest.mark.parametrize("layers", [[], [3, 3], [1], [-1, 0]])
def test_layers_are_numbered_one_by_one(tmp_path, write, layers):
    placement = Placement(np.tile(np.arange(4).reshape(2, 2), (2, 1, 1)))
    with pytest.raises(ValueError, match="layers must be 2 different numbers from 0"):
        write(tmp_path / "plan", placement, layers)


@pytest.mark.parametrize("write", WRITERS)
def test_a_file_is_replaced_whole(tmp_path, write):
    path = tmp_path / "plan"
    path.write_text("old")
    write(path, Placement(np.arange(4).reshape(1, 2, 2)))
    assert [file.name for file in tmp_path.iterdir()] == ["plan"]
    assert "old" not in path.read_text()
