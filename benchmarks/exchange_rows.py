"""Records of an exchange measurement."""

from collections.abc import Mapping
from dataclasses import asdict

import numpy as np
from jaxtyping import Float

from benchmarks.exchange_cost import STAGES, seconds_of, volume
from benchmarks.exchange_job import Exchanged, Job
from benchmarks.rows import Rows
from placement.cost import CostModel
from placement.volume import CommVolume


def add_exchange(rows: Rows, job: Job, exchanged: Mapping[str, Exchanged], name: str, baseline: str) -> None:
    """Seconds and bytes of a variant, summed over layers.

    The ratio to the baseline is taken round by round, as both were measured minutes apart at most, and its median kept.
    """
    mine, other = exchanged[name], exchanged[baseline]
    check_volume(job, name, mine)
    rounds = len(mine.dispatch)
    seconds = {"dispatch": mine.dispatch.sum(1), "combine": mine.combine.sum(1), "exchange": per_round(mine)}
    for part, values in seconds.items():
        rows.add(f"{part}_seconds", float(np.median(values)), method=name, count=rounds)
    quarter, three_quarters = np.percentile(seconds["exchange"], [25, 75])
    rows.add("exchange_seconds_iqr", float(three_quarters - quarter), method=name, count=rounds)
    ratio = per_round(mine) / per_round(other)
    rows.add("exchange_over_baseline", float(np.median(ratio)), method=name, count=rounds)
    compute = float(np.median(mine.compute.sum(1)))
    rows.add("compute_seconds_modelled", compute, method=name, count=len(mine.compute))
    whole = seconds["exchange"] + compute
    rows.add("all_to_all_share_modelled", float(np.median(seconds["exchange"] / whole)), method=name, count=rounds)
    add_bytes(rows, job, name, mine)


def add_bytes(rows: Rows, job: Job, name: str, mine: Exchanged) -> None:
    """Bytes that the busiest node and device exchange, and what the kernel counted over what was to be sent."""
    sent = CommVolume(mine.rows * job.row_bytes + mine.metadata, job.topology)
    returned = CommVolume(mine.rows * job.row_bytes, job.topology).reverse
    for metric, exchange in {"dispatch": sent, "combine": returned}.items():
        busiest = np.maximum(exchange.busiest_node_egress, exchange.busiest_node_ingress)
        rows.add(f"{metric}_busiest_node_bytes", float(busiest.sum()), method=name)
    total = sent + returned
    for links in ("local", "intra_node", "inter_node"):
        rows.add(f"{links}_bytes", float(getattr(total, links).sum()), method=name)
    rows.add("metadata_share", float(mine.metadata.sum() / sent.bytes.sum()), method=name)
    if mine.wire.any():
        rows.add("wire_over_payload", float(np.median(mine.wire.sum(1)) / total.inter_node.sum()), method=name)


def check_volume(job: Job, name: str, mine: Exchanged) -> None:
    """What was sent is what `placement.volume` says, to the row."""
    stages = [volume(job, name, accounting).bytes for accounting in STAGES[job.variants[name].dispatcher]]
    assert (mine.rows * job.row_bytes == sum(stages)).all(), f"{name}: rows sent differ from the volume's"


def add_credit(rows: Rows, job: Job, exchanged: Mapping[str, Exchanged]) -> None:
    """Which cause saves which share of the baseline's seconds, each on top of the ones before; they add up.

    deduplication: one copy a device instead of one an expert; placement: the plain router's own; constraint: the
    router, placed likewise; hierarchy: one copy a node.
    """
    seen = {name.rsplit("/", 1)[0] for name, variant in job.variants.items() if variant.computes}
    for where in sorted(seen):
        router, placement = where.split("/")
        ladder = {
            "none": "topk/contiguous/per_expert",
            "deduplication": "topk/contiguous/per_device",
            "placement": f"topk/{placement}/per_device",
            "constraint": f"{router}/{placement}/per_device",
            "hierarchy": f"{router}/{placement}/per_node",
        }
        if not set(ladder.values()) <= set(job.variants):
            continue
        seconds = [float(np.median(per_round(exchanged[name]))) for name in ladder.values()]
        for cause, before, after in zip(list(ladder)[1:], seconds[:-1], seconds[1:], strict=True):
            rows.add(f"seconds_saving/{cause}", (before - after) / seconds[0], method=where)
        rows.add("seconds_saving/all", (seconds[0] - seconds[-1]) / seconds[0], method=where)


def add_prediction(rows: Rows, name: str, mine: Exchanged, predicted: Float[np.ndarray, " L"]) -> None:
    """What the cost model fitted to the calibration says of a variant, and how far off it is."""
    measured = float(seconds_of(mine).sum())
    rows.add("predicted_seconds", float(predicted.sum()), method=name)
    rows.add("prediction_error", abs(float(predicted.sum()) / measured - 1.0), method=name)


def add_costs(rows: Rows, costs: Mapping[str, CostModel], smallest_bytes: float) -> None:
    """Each dispatcher's fitted cost model, and bytes of the busiest node in the smallest exchange it was fitted to."""
    for dispatcher, cost in costs.items():
        for name, value in asdict(cost).items():
            rows.add(f"cost/{name}", value, method=dispatcher)
        rows.add("cost/smallest_bytes", smallest_bytes, method=dispatcher)


def per_round(exchanged: Exchanged) -> Float[np.ndarray, " R"]:
    """Seconds of dispatch and combine over all layers, round by round."""
    return (exchanged.dispatch + exchanged.combine).sum(1)
