"""Which experts of a trained model work together, and how much would a list of partners constrain?

python -m benchmarks.profile trace.setting=nano16 trace.seed=0 trace.scale=cpu
python -m benchmarks.profile trace.run=outputs/cpu/train_router/ARM

Routes text through the weights of a finished training run, as C2R does before it limits a router (Zhang et
al., 2025, arXiv 2504.01337). The folder keeps, beside the records:

    profile.npz     collaboration (L, E, E), which router.collaboration=PATH takes; partners (L, E, E - 1), of which the
                    first T are the Top-T lists; degree (L, E); loads (L, E); transitions (L - 1, E, E)
"""

from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
from omegaconf import DictConfig
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from benchmarks.cell import Measurement, run_cell, user_errors
from benchmarks.curves import Curves
from benchmarks.rows import Rows, mean_where
from benchmarks.train import build_source
from benchmarks.trained import on_one_device, read_module, run_config, run_folder, with_trained
from models.profiling import routing_trace
from placement.balance import balance
from traces.atomic import write_atomically
from traces.collaboration import (
    collaboration_degree,
    independent_collaboration,
    list_coverage,
    ranked_partners,
    transitions,
)
from traces.routing import RoutingTrace


def measure(config: DictConfig, folder: Path, tracker: Any) -> Measurement:
    """Profile one run's model; the figures show the matrices of seed 0."""
    trace, ground = route_profile(config)
    collaboration, loads = trace.collaboration(), trace.loads().sum(0)
    profile = {
        "collaboration": collaboration,
        "partners": ranked_partners(collaboration),
        "degree": collaboration_degree(collaboration),
        "loads": loads,
        "transitions": transitions(trace),
    }
    write_atomically(folder / "profile.npz", lambda file: np.savez_compressed(file, **profile))
    rows, curves = Rows(config, ground=ground), Curves(config)
    add_degrees(rows, curves, collaboration, loads, config.profile.threshold)
    add_coverage(rows, collaboration, loads, trace.source.top_k)
    add_balance(rows, loads)
    if config.seed == 0:
        add_matrices(curves, collaboration)
    return Measurement(rows.records, curves.series, trace.source.data_fingerprint)


def route_profile(config: DictConfig) -> tuple[RoutingTrace, str]:
    """How the trained model routes the sampled text, and the device that computed it.

    Raises:
        ValueError: the run is not finished, or its router gives a token one expert.
    """
    folder = run_folder(config)
    training = run_config(folder, config.outputs)
    if training.router.top_k < 2:
        raise ValueError(f"{config.setting} has top_k = {training.router.top_k}: experts have no partners")
    # one primitive is cached for every expert size, which grows without bound (and was slower)
    torch.backends.mkldnn.enabled = False
    module, data = read_module(training, folder)
    chosen = config.profile
    batches = (batch["tokens"][:, :-1] for batch in data.sampled_batches(chosen.text, chosen.batches, chosen.seed))
    source = build_source(training, data, training.data.sequences_per_batch)
    with on_one_device(training, module):
        return routing_trace(module, batches, source), module.device.type


def add_degrees(rows: Rows, curves: Curves, collaboration: np.ndarray, loads: np.ndarray, threshold: float) -> None:
    """How evenly experts share their tokens, beside experts with the same loads and no preference."""
    degree, random = collaboration_degree(collaboration), collaboration_degree(independent_collaboration(loads))
    active = np.isfinite(degree)
    mean, mean_random = mean_where(degree, active, 1), mean_where(random, active, 1)
    rows.by_layer("collaboration_degree", mean)
    rows.by_layer("collaboration_degree_p10", np.array([quantile(layer, 0.1) for layer in degree]))
    rows.by_layer("collaboration_degree_random", mean_random)
    rows.by_layer("collaboration_degree_over_random", mean / mean_random)
    rows.by_layer("overly_collaborative_share", mean_where(degree > threshold, active, 1))
    rows.by_layer("never_active_share", 1.0 - active.mean(1))
    for layer, values in enumerate(degree):
        add_sorted(curves, f"layer {layer}", values)
    add_sorted(curves, "random partners", random)
    curves.add("collaboration_degree", "all layers", "threshold", np.array([0.0, 1.0]), np.full(2, threshold))


def add_sorted(curves: Curves, series: str, degree: np.ndarray) -> None:
    """The degrees of active experts in ascending order, over the share of experts that come before."""
    ascending = np.sort(degree[np.isfinite(degree)])
    curves.add("collaboration_degree", "all layers", series, np.linspace(0, 1, len(ascending)), ascending)


def quantile(values: np.ndarray, share: float) -> float:
    """Quantile of the values that are numbers, NaN where none is."""
    finite = values[np.isfinite(values)]
    return float(np.quantile(finite, share)) if finite.size else np.nan


def add_coverage(rows: Rows, collaboration: np.ndarray, loads: np.ndarray, top_k: int) -> None:
    """Share of co-activations that Top-T lists admit, by T."""
    found, random = list_coverage(collaboration), list_coverage(independent_collaboration(loads))
    for top_t in list_lengths(top_k, collaboration.shape[-1]):
        rows.by_layer("top_t_coverage", found[:, top_t - 1], method=f"t{top_t}")
        rows.by_layer("top_t_coverage_random", random[:, top_t - 1], method=f"t{top_t}")


def list_lengths(top_k: int, num_experts: int) -> list[int]:
    """The shortest list that leaves a token K experts, and powers of two below the longest."""
    shortest, longest = top_k - 1, num_experts - 1
    return sorted({shortest} | {2**n for n in range(longest.bit_length()) if shortest < 2**n < longest})


def add_balance(rows: Rows, loads: np.ndarray) -> None:
    """How evenly experts are loaded by this text."""
    of_layer = balance(loads)
    for name in ("max_over_mean", "coefficient_of_variation"):
        rows.by_layer(f"expert_{name}", of_layer[name])


def add_matrices(curves: Curves, collaboration: np.ndarray) -> None:
    """Each layer's matrix, a curve a row: y = share of the row's expert, x = the column's expert."""
    for layer, counts in enumerate(collaboration):
        order = seriate(counts)
        share = counts[order][:, order] / np.maximum(counts[order].sum(1, keepdims=True), 1)
        for expert, row in zip(order, share, strict=True):
            curves.add("collaboration", f"layer {layer}", f"expert {expert}", order, row, points=len(order))


def seriate(counts: np.ndarray) -> np.ndarray:
    """An order of the experts in which those that work together stand together: leaves of average linkage."""
    volume = np.maximum(counts.sum(1), 1)
    closeness = counts / np.sqrt(np.outer(volume, volume))
    distance = closeness.max() - closeness
    np.fill_diagonal(distance, 0.0)
    return leaves_list(linkage(squareform(distance, checks=False), "average", optimal_ordering=True))


@hydra.main(config_path="../conf", config_name="profile", version_base="1.3")
def main(config: DictConfig) -> None:
    with user_errors():
        config = with_trained(config)
        run_cell(config, [config.setting, f"seed{config.seed}"], measure)


if __name__ == "__main__":
    main()
