"""Seconds of an all-to-all exchange: a latency, and bytes over the link that takes longest (alpha-beta model).

An exchange over a cluster ends when its slowest link is done. Between nodes that is the card of the node that sends or
gets most; inside a node, the device that sends or gets most. The mean number of copies predicts neither: a placement
that sends fewer rows, but most of them to one node, can take longer. Both kinds of links work at the same time, so an
exchange takes the longer of the two, not their sum. Stages that wait for one another add up.

The alpha-beta form is the usual one (Hockney, 1994, Parallel Computing 20, doi:10.1016/S0167-8191(06)80021-9); the
busiest node and device, and the fit, are ours.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Real
from scipy.optimize import nnls

from placement.topology import Topology
from placement.volume import CommVolume

# below this share of the largest singular value, columns of known sizes say the same thing
SMALLEST_SINGULAR = 1e-6


@dataclass(frozen=True)
class CostModel:
    """What an exchange costs on one cluster, or on one cluster with one dispatcher.

    Attributes:
        seconds_per_exchange: paid once by each stage, however little it moves.
        seconds_per_byte_between_nodes: of the node with the largest egress or ingress.
        seconds_per_byte_inside_node: of the device with the largest egress or ingress inside its node.

    Raises:
        ValueError: a parameter negative or not finite.
    """

    seconds_per_exchange: float
    seconds_per_byte_between_nodes: float
    seconds_per_byte_inside_node: float

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be finite and not negative, got {value}")

    @classmethod
    def from_topology(cls, topology: Topology) -> "CostModel":
        """The model of a cluster's data sheet; the latency is that of the slowest link there is."""
        latency = topology.inter_node_latency if topology.nodes > 1 else topology.intra_node_latency
        return cls(latency, 1.0 / topology.inter_node_bandwidth, 1.0 / topology.intra_node_bandwidth)

    def times(self, factor: float) -> "CostModel":
        """The same cluster, so many times slower."""
        return CostModel(*(factor * value for value in asdict(self).values()))

    def seconds(self, *stages: CommVolume) -> Float[np.ndarray, "*B"]:
        """Predicted seconds of an exchange whose stages follow one another; most dispatchers have one.

        Dispatch and combine are stages too: `seconds(dispatch, dispatch.reverse)`.

        Raises:
            ValueError: no stage, or stages of several batch shapes.
        """
        between_BQ, inside_BQ = _busiest_bytes(stages)
        slowest_BQ = np.maximum(
            self.seconds_per_byte_between_nodes * between_BQ, self.seconds_per_byte_inside_node * inside_BQ
        )
        return np.asarray((self.seconds_per_exchange + slowest_BQ).sum(-1))


class PredictionError(NamedTuple):
    """How far predicted seconds are from measured ones.

    Attributes:
        relative: (*B) predicted / measured - 1.
        median: of the absolute relative errors.
        worst: the largest absolute relative error.
    """

    relative: Float[np.ndarray, "*B"]
    median: float
    worst: float


def prediction_error(
    model: CostModel, stages: Sequence[CommVolume], seconds: Real[np.ndarray, "*B"]
) -> PredictionError:
    """Relative error at every measured exchange; measure others than the model was fitted to.

    Raises:
        ValueError: seconds not positive and finite, or of another shape than the stages' batch; none measured.
    """
    _check_seconds(stages, seconds)
    relative = model.seconds(*stages) / seconds - 1.0
    return PredictionError(relative, float(np.median(np.abs(relative))), float(np.abs(relative).max()))


def fit_cost(stages: Sequence[CommVolume], seconds: Real[np.ndarray, "*B"]) -> CostModel:
    """Fit a cluster's, or one dispatcher's, parameters to measured exchanges; all of them 0 or more.

    Minimises the sum of squared relative errors: small messages count as much as large ones, and one that was held up
    counts less than one that went through, so noisy measurements give rates a little fast. Which link ended an
    exchange depends on one ratio only, that of the two rates: with it fixed the model is linear, and the fit tries
    every ratio that changes an assignment and keeps the one with the least error.

    A link that ends no exchange leaves its rate unknown, and which link ended a mixed one is a guess before the fit. So
    the sweep must also hold exchanges of which every stage uses one kind of link only: between nodes and inside nodes,
    as far as the topology has them, at least one kind of them in two sizes. The rate of a kind that it lacks is 0.

    Args:
        stages: of the same exchanges, one after the other: bytes (*B, G, G) each.
        seconds: measured, one for each exchange, best a median over repetitions.

    Raises:
        ValueError: the sweep leaves a parameter unknown (too few exchanges, all of one size, a link not used alone);
            seconds not positive and finite, or of another shape than the stages' batch.
    """
    _check_seconds(stages, seconds)
    between_PQ, inside_PQ = (links.reshape(-1, len(stages)) for links in _busiest_bytes(stages))
    topology, seconds_P = stages[0].topology, seconds.reshape(-1).astype(float)
    used = np.array([True, topology.nodes > 1, topology.devices_per_node > 1])
    _check_identified(between_PQ, inside_PQ, used)
    # a stage is ended by links between nodes if it has so many bytes there for each byte inside a node
    ratio_PQ = np.divide(between_PQ, inside_PQ, out=np.full(between_PQ.shape, np.inf), where=inside_PQ > 0)
    thresholds = np.unique([*ratio_PQ[ratio_PQ > 0], np.inf])
    models = [_fit_assigned(between_PQ, inside_PQ, ratio_PQ >= threshold, seconds_P) for threshold in thresholds]
    return min(models, key=lambda model: np.square(prediction_error(model, stages, seconds).relative).sum())


def _fit_assigned(
    between_PQ: np.ndarray, inside_PQ: np.ndarray, crosses_PQ: np.ndarray, seconds_P: np.ndarray
) -> CostModel:
    design_PX = _design(between_PQ * crosses_PQ, inside_PQ * ~crosses_PQ)
    # nnls takes a column of zeros for unused, and columns of one size for well-conditioned
    size_X = np.maximum(design_PX.max(0), 1.0)
    fitted_X, _ = nnls(design_PX / size_X / seconds_P[:, None], np.ones(len(seconds_P)))
    return CostModel(*(fitted_X / size_X).tolist())


def _design(between_PQ: np.ndarray, inside_PQ: np.ndarray) -> Float[np.ndarray, "P 3"]:
    """What each parameter is multiplied by."""
    num_exchanges, num_stages = between_PQ.shape
    return np.stack([np.full(num_exchanges, float(num_stages)), between_PQ.sum(1), inside_PQ.sum(1)], axis=1)


def _check_identified(between_PQ: np.ndarray, inside_PQ: np.ndarray, used_X: np.ndarray) -> None:
    """Refuse a sweep whose certain exchanges, of which each stage uses one kind of link, leave a parameter free."""
    certain_P = ((between_PQ == 0) | (inside_PQ == 0)).all(1)
    design_PX = _design(between_PQ, inside_PQ)[certain_P][:, used_X]
    scaled_PX = design_PX / np.maximum(np.abs(design_PX).max(0, initial=0), 1.0)
    _, singular, rows_XX = np.linalg.svd(scaled_PX)
    rank = (singular > SMALLEST_SINGULAR * singular.max(initial=1.0)).sum()
    free_X = np.abs(rows_XX[rank:]).max(0, initial=0) > SMALLEST_SINGULAR
    if free_X.any():
        names = np.array([field.name for field in fields(CostModel)])[used_X][free_X]
        raise ValueError(
            f"the sweep leaves {' and '.join(names)} unknown: {certain_P.sum()} of its {len(certain_P)} exchanges use "
            "one kind of link a stage; it takes such ones over each kind, of two sizes, not all in one proportion"
        )


def _busiest_bytes(stages: Sequence[CommVolume]) -> tuple[Real[np.ndarray, "*B Q"], Real[np.ndarray, "*B Q"]]:
    """Bytes of the busiest node to or from others, and of the busiest device to or from others of its node."""
    if len({stage.bytes.shape for stage in stages}) != 1:
        raise ValueError(f"stages must be at least one, of one shape; got {[stage.bytes.shape for stage in stages]}")
    between = [np.maximum(stage.busiest_node_egress, stage.busiest_node_ingress) for stage in stages]
    within = [_inside_nodes(stage) for stage in stages]
    inside = [np.maximum(stage.busiest_device_egress, stage.busiest_device_ingress) for stage in within]
    return np.stack(between, -1), np.stack(inside, -1)


def _inside_nodes(volume: CommVolume) -> CommVolume:
    node_G = volume.topology.node_of_device
    return CommVolume(volume.bytes * (node_G[:, None] == node_G), volume.topology)


def _check_seconds(stages: Sequence[CommVolume], seconds: np.ndarray) -> None:
    if not seconds.size or any(stage.bytes.shape[:-2] != seconds.shape for stage in stages):
        shapes = [stage.bytes.shape[:-2] for stage in stages]
        raise ValueError(f"each exchange needs its seconds, got {seconds.shape} for stages of {shapes} exchanges")
    if not (seconds > 0).all() or not np.isfinite(seconds).all():
        raise ValueError(f"seconds must be positive and finite, got {seconds.min()}..{seconds.max()}")
