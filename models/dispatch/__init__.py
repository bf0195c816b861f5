"""Bring tokens to their experts and back.

Seam: `dispatch(x, routing) -> (rows, tokens_per_expert, plan)` and `combine(rows, plan) -> x`; no parameters. The plan
is what combine needs and what counts the rows moved.
"""

from models.dispatch.local import LocalDispatcher, LocalPlan
from models.dispatch.per_device import PerDeviceDispatcher
from models.dispatch.per_expert import PerExpertDispatcher
from models.dispatch.per_node import PerNodeDispatcher
from models.dispatch.seam import Dispatcher, Plan, nothing
from models.dispatch.shard import ExpertShard, make_shard

__all__ = [
    "Dispatcher",
    "ExpertShard",
    "LocalDispatcher",
    "LocalPlan",
    "PerDeviceDispatcher",
    "PerExpertDispatcher",
    "PerNodeDispatcher",
    "Plan",
    "make_shard",
    "nothing",
]
