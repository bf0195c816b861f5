"""Move experts between ranks while training, when the forecast says that it pays (ours); see `models.rebalancing`."""

import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Int
from torch import Tensor

from models.callbacks.ranks import fastest, routing_on_first_rank, rows_between, slowest, synchronized
from models.callbacks.step_timer import COMBINE, DISPATCH, EXPERTS, StepTimer, clock_of
from models.expert_parallel import ExpertParallelStrategy
from models.rebalancing import Prices, Proposal, Rebalancing, busiest_tokens
from placement.movement import moved_slots
from placement.set_rows import busiest_way
from placement.topology import Placement
from placement.volume import CommVolume
from traces.routing import ExpertSets


@dataclass(frozen=True)
class Decision:
    """What was decided, in seconds and bytes.

    Attributes:
        step: number of steps done.
        stable_layers: layers believed for the whole horizon.
        expected_saving, expected_cost: of the layers that moved.
        moved_slots, moved_bytes: what went from device to device.
        planning_seconds: forecast and plan, on the rank that decides.
        migration_seconds: the move, on the slowest rank; 0 where nothing moved.
    """

    step: int
    stable_layers: int
    expected_saving: float
    expected_cost: float
    planning_seconds: float
    moved_slots: int = 0
    moved_bytes: int = 0
    migration_seconds: float = 0.0


class Rebalancer(L.Callback):
    """Asks a policy every `every` steps whether experts should move, and moves them.

    Rank 0 decides. What a token and a row cost is timed in the step before each decision; what a byte costs is the data
    sheet's, times what earlier moves took of it.

    Args:
        policy: what to move, and when that pays.
        every: steps between decisions.
        history: steps of load that are kept.
        sample: tokens of each rank, of that step's last micro-batch, whose routing the policy is told.

    Attributes:
        decisions: all of this process, on rank 0.

    Raises:
        ValueError: numbers below 1; without an ExpertParallelStrategy, when training starts.
    """

    def __init__(self, policy: Rebalancing, every: int = 100, history: int = 1000, sample: int = 4096) -> None:
        if min(every, history, sample) < 1:
            raise ValueError(f"need every, history and sample >= 1, got {every}, {history} and {sample}")
        self.policy, self.every, self.history, self.sample = policy, every, history, sample
        self.decisions: list[Decision] = []
        self._counting: dict[str, Tensor] = {}
        self._loads: list[Tensor] = []
        self._past: np.ndarray | None = None
        self._restored: Tensor | None = None
        self._prices: Prices | None = None
        self._timer: StepTimer | None = None
        self._timing = ExitStack()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        strategy = _strategy(trainer)
        self._prices = Prices(strategy.topology)
        restored, self._restored = self._restored, None
        # at another world size the strategy's own placement is the start
        if restored is not None and tuple(restored.shape) == strategy.experts.placement.slots.shape:
            strategy.migrate(Placement(restored.numpy()))

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        step, micro_batch = divmod(batch_idx, trainer.accumulate_grad_batches)
        if micro_batch == 0 and (step + 1) % self.every == 0:
            self._timer = StepTimer(clock_of(pl_module.device))
            self._timing.enter_context(self._timer.timing(pl_module))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step, micro_batch = divmod(batch_idx, trainer.accumulate_grad_batches)
        counted = {name: outputs[name] for name in ("loads", "rows_sent")}
        if micro_batch:
            counted = {name: one + self._counting[name] for name, one in counted.items()}
        if micro_batch + 1 < trainer.accumulate_grad_batches:
            self._counting = counted
            return
        self._loads.append(counted["loads"])
        if (step + 1) % self.every:
            return
        self._timing.close()
        self._flush()
        strategy = _strategy(trainer)
        self._price_step(strategy, counted["rows_sent"])
        routing = routing_on_first_rank(torch.stack([one[: self.sample] for one in outputs["expert_indices"]]))
        decision = self._rebalance(strategy, step + 1, routing)
        if trainer.is_global_zero:
            self.decisions.append(decision)
            told = {f"rebalance/{name}": float(value) for name, value in asdict(decision).items() if name != "step"}
            pl_module.log_dict(told, rank_zero_only=True)

    def _flush(self) -> None:
        """Sum the loads held back over ranks. All ranks call it."""
        if not self._loads:
            return
        loads_SLE = torch.stack(self._loads)
        dist.all_reduce(loads_SLE)
        new, self._loads = loads_SLE.cpu().numpy(), []
        self._past = new if self._past is None else np.concatenate([self._past, new])[-self.history :]

    def _price_step(self, strategy: ExpertParallelStrategy, rows_LG: Int[Tensor, "L G"]) -> None:
        assert self._timer is not None
        assert self._past is not None
        assert self._prices is not None
        split, self._timer = self._timer.split(), None
        tokens = busiest_tokens(self._past[-1], strategy.experts.placement)
        rows = int(busiest_way(CommVolume(rows_between(rows_LG), strategy.topology)).sum())
        experts = slowest(split[EXPERTS], strategy.root_device)
        exchange = fastest(split[DISPATCH] + split[COMBINE], strategy.root_device)
        self._prices.saw_step(experts, tokens, exchange, rows)

    def _rebalance(self, strategy: ExpertParallelStrategy, step: int, routing: list[ExpertSets] | None) -> Decision:
        current, started = strategy.experts.placement, time.perf_counter()
        mine = self._propose(strategy, routing) if strategy.is_global_zero else None
        planning = time.perf_counter() - started
        proposal: Proposal = strategy.broadcast(mine)  # pyright: ignore[reportAssignmentType]
        told = Decision(step, int(proposal.stable.sum()), proposal.saving, proposal.cost, planning)
        moved = int(moved_slots(current, proposal.placement).sum())
        if not moved:
            return told
        started = synchronized(strategy.root_device)
        volume = strategy.migrate(proposal.placement)
        seconds = slowest(synchronized(strategy.root_device) - started, strategy.root_device)
        assert self._prices is not None
        self._prices.saw_move(seconds, volume)
        return replace(told, moved_slots=moved, moved_bytes=int(volume.bytes.sum()), migration_seconds=seconds)

    def _propose(self, strategy: ExpertParallelStrategy, routing: list[ExpertSets] | None) -> Proposal:
        assert self._past is not None
        assert self._prices is not None
        price, current = self._prices.price(strategy.bytes_per_expert), strategy.experts.placement
        return self.policy.propose(self._past, current, strategy.topology, price, self.every, routing)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._flush()
        slots = torch.from_numpy(_strategy(trainer).experts.placement.slots.astype(np.int64))
        past = None if self._past is None else torch.from_numpy(self._past)
        checkpoint["rebalancer"] = {"slots": slots, "past": past}

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if told := checkpoint.get("rebalancer"):
            self._restored = told["slots"]
            self._past = None if told["past"] is None else told["past"].numpy()


def _strategy(trainer: L.Trainer) -> ExpertParallelStrategy:
    if not isinstance(trainer.strategy, ExpertParallelStrategy):
        found = type(trainer.strategy).__name__
        raise ValueError(f"experts move between ranks of an ExpertParallelStrategy, this run has a {found}")
    return trainer.strategy
