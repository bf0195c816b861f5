"""One rank of a live re-balancing: python -m benchmarks.live_rank FOLDER BACKEND, started by run_ranks.

As `benchmarks.step_rank`, and before each block a rule may move its own model's experts: its forecast, its plan and the
move are timed, and dealt to the block's steps. Nothing is known to a rule but loads of steps done and the routing of
the last one; the oracle's come from a pilot, a model trained first on the same batches.
"""

import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from hydra.utils import instantiate
from jaxtyping import Int, Integer
from omegaconf import DictConfig
from torch import Tensor

from benchmarks.live_job import NOTED, SCRATCH, Live, read_live
from benchmarks.step_job import StepJob, read_job
from benchmarks.step_rank import Steps, read_models, train_in_turns
from benchmarks.train import build_data, build_module, prepare_process
from benchmarks.trained import read_given, read_module
from models.callbacks.ranks import fastest, routing_on_first_rank, rows_between, slowest, synchronized
from models.callbacks.step_timer import COMBINE, DISPATCH, EXPERTS, PARTS
from models.data import Batch, TextDataModule
from models.expert_parallel import ExpertParallelStrategy
from models.language_model import LanguageModel
from models.rebalancing import Prices, Rebalancing, busiest_tokens
from placement.balance import device_load, max_over_mean
from placement.payoff import Price
from placement.set_rows import busiest_way
from placement.topology import Placement, Topology
from placement.volume import CommVolume
from predictors.base import Predictor
from predictors.windows import LastValue
from traces.atomic import write_atomically
from traces.load import proportions
from traces.routing import ExpertSets


class Seen(NamedTuple):
    """Loads (S, L, E) of some steps, and the routing of the last of them by layer."""

    loads: Integer[np.ndarray, "S L E"]
    routing: list[ExpertSets]


# (steps done, steps to come, where experts live, prices as timed) -> where they should live
Rule = Callable[[Seen, Seen, Placement, Price], Placement]


def build_rules(live: Live, topology: Topology, steps: int) -> dict[str, Rule]:
    """The rules that move experts, by variant; `steps` are those between two decisions. Only the oracle looks ahead."""
    predictor = instantiate(live.predictor)
    return {
        name: _rule(live.rules[name], Rebalancing(instantiate(planner), predictor, **live.policy), topology, steps)
        for name, planner in live.planners.items()
    }


def _rule(kind: str, policy: Rebalancing, topology: Topology, steps: int) -> Rule:
    def by_forecast(predictor: Predictor) -> Rule:
        return lambda past, coming, current, price: policy.plan(
            predictor.forecast(past.loads, steps).mean(0), current, topology, past.routing
        )

    kinds: dict[str, Rule] = {
        "last_value": by_forecast(LastValue()),
        "forecast": by_forecast(policy.predictor),
        "if_it_pays": lambda past, coming, current, price: (
            policy.propose(past.loads, current, topology, price, steps, past.routing).placement
        ),
        "oracle": lambda past, coming, current, price: policy.plan(
            proportions(coming.loads).mean(0), current, topology, coming.routing
        ),
    }
    return kinds[kind]


class LiveSteps(Steps):
    """Trains the models of all rules in turns, and before each block lets a rule move its model's experts.

    Args:
        job, batches, clip: as of Steps.
        live: the rules.
        trained: the models in the order of the job's runs, the pilot's last.

    Attributes:
        noted: by "NAME/FIELD" what `benchmarks.live_job.Lived` holds of each block, beside its seconds.
    """

    def __init__(
        self, job: StepJob, live: Live, trained: list[LanguageModel], batches: list[Batch], clip: float | None
    ) -> None:
        super().__init__(job, trained, batches, clip)
        self.rules = build_rules(live, job.topology, job.steps)
        self.from_scratch = live.start == SCRATCH
        self.past, self.history = dict.fromkeys(job.variants, live.past), live.history
        self.chosen: dict[int, Tensor] = {}
        # on the first rank
        self.coming: list[Seen] = []
        self.prices = {name: Prices(job.topology) for name in job.variants}
        self.told: list[dict[str, Tensor]] = []
        self.num_steps = [0] * len(trained)
        self.noted: dict[str, list[float]] = {f"{name}/{field}": [] for name in job.variants for field in NOTED}

    def training_step(self, batch: Any, batch_idx: int) -> None:
        steps = self.job.steps
        for block in range(self.job.blocks + 1):
            for whole in self.batches[block * steps : (block + 1) * steps]:
                self.step(len(self.models) - 1, self.mine(whole))
            loads, routing = self._flush()["loads"], routing_on_first_rank(self.chosen[len(self.models) - 1])
            if routing is not None:
                self.coming.append(Seen(loads, routing))
        super().training_step(batch, batch_idx)

    def mine(self, batch: Batch) -> Int[Tensor, "B _"]:
        """Sequences in the order of their domains, dealt in runs: devices read different kinds of text."""
        by_domain = torch.argsort(batch["domain"], stable=True)
        return batch["tokens"][by_domain].chunk(self.job.topology.num_devices)[self.trainer.global_rank]

    def step(self, number: int, tokens: Int[Tensor, "B _"]) -> dict[str, Tensor]:
        """As Steps, at the learning rate that the run's own schedule has there, or had at the end of it."""
        model, optimizers = self.models[number], self.optimizers()
        assert isinstance(model, LanguageModel)
        assert isinstance(optimizers, list)
        at = self.num_steps[number] if self.from_scratch else model.total_steps - 1
        for group in optimizers[number].param_groups:
            group["lr"] = model.learning_rate * model.rate_factor(at)
        told = super().step(number, tokens)
        self.num_steps[number] += 1
        self.chosen[number] = torch.stack(told["expert_indices"])  # pyright: ignore[reportArgumentType]
        self.told.append({"loss": told["loss"].detach(), **{name: told[name] for name in ("loads", "rows_sent")}})
        return told

    def _block(self, name: str, block: int) -> list[float]:
        moving, moved = self._rebalance(name, block) if block and name in self.rules else (0.0, 0)
        seconds = super()._block(name, block)
        found = self._flush()
        loads_SLE, rows_LGG = found["loads"], found["rows_sent"]
        placement, steps, part = self._placement(name), self.job.steps, dict(zip(PARTS, seconds, strict=True))
        busiest = fmean(busiest_tokens(loads_LE, placement) for loads_LE in loads_SLE)
        busiest_rows = float(busiest_way(CommVolume(rows_LGG, self.job.topology)).sum()) / steps
        exchange = fastest(part[DISPATCH] + part[COMBINE], self.device)
        self.prices[name].saw_step(slowest(part[EXPERTS], self.device), busiest, exchange, busiest_rows)
        self.past[name] = np.concatenate([self.past[name], loads_SLE])[-self.history :]
        if block:
            noted = {
                "moved_bytes": moved,
                "max_over_mean": max_over_mean(device_load(loads_SLE, placement)).mean(),
                "rows_sent": rows_LGG.sum() / steps,
                "busiest_rows": busiest_rows,
                "loss": found["loss"],
            }
            for field, value in noted.items():
                self.noted[f"{name}/{field}"].append(float(value))
        return [*seconds, moving / steps]

    def _flush(self) -> dict[str, np.ndarray]:
        """Of the steps since the last call, over all ranks, which all call it.

        Their "loads" (S, L, E), mean "loss" (), and "rows_sent" (L, G, G) by source and destination, 0 to itself.
        """
        mine, self.told = self.told, []
        loads_SLE = torch.stack([one["loads"] for one in mine])
        loss = torch.stack([one["loss"] for one in mine]).mean() / dist.get_world_size()
        for one in (loads_SLE, loss):
            dist.all_reduce(one)
        rows_LGG = rows_between(torch.stack([one["rows_sent"] for one in mine]).sum(0))
        return {"loads": loads_SLE.cpu().numpy(), "loss": loss.cpu().numpy(), "rows_sent": rows_LGG}

    def _rebalance(self, name: str, block: int) -> tuple[float, int]:
        """Let a rule decide on the first rank and move its model's experts; seconds on the slowest rank, and bytes."""
        strategy, mine, moved = self._strategy, self._layers(name), 0
        dist.barrier()
        started = time.perf_counter()
        routing = routing_on_first_rank(self.chosen[list(self.job.variants).index(name)])
        decided = None if routing is None else self._decide(name, block, routing)
        slots = strategy.experts.placement.slots.copy()
        slots[mine] = strategy.broadcast(decided)
        if (slots != strategy.experts.placement.slots).any():
            began = synchronized(self.device)
            volume = strategy.migrate(Placement(slots))
            self.prices[name].saw_move(slowest(synchronized(self.device) - began, self.device), volume)
            moved = int(volume.bytes.sum())
        return slowest(synchronized(self.device) - started, self.device), moved

    def _decide(self, name: str, block: int, routing: list[ExpertSets]) -> Int[np.ndarray, "L G C"]:
        price, past = self.prices[name].price(self._strategy.bytes_per_expert), Seen(self.past[name], routing)
        return self.rules[name](past, self.coming[block], self._placement(name), price).slots

    @property
    def _strategy(self) -> ExpertParallelStrategy:
        assert isinstance(self.trainer.strategy, ExpertParallelStrategy)
        return self.trainer.strategy

    def _layers(self, name: str) -> slice:
        """Where a rule's model has its MoE layers among all models'."""
        number, each = list(self.job.variants).index(name), next(iter(self.job.placements.values())).num_layers
        return slice(number * each, (number + 1) * each)

    def _placement(self, name: str) -> Placement:
        return Placement(self._strategy.experts.placement.slots[self._layers(name)])


def new_module(training: DictConfig, folder: Path) -> tuple[LanguageModel, TextDataModule]:
    """As `read_module`, with the weights that the run started from."""
    prepare_process(training.seed)
    data = build_data(training)
    module = build_module(training, data, **read_given(folder))
    module.configure_model()
    return module, data


def measure(job: StepJob, live: Live, backend: str) -> dict[str, np.ndarray] | None:
    """Train under all rules in turns; what all ranks measured on rank 0, None on the others."""
    prepare_process(job.seed)
    trained, batches, given = read_models(job, new_module if live.start == SCRATCH else read_module)
    steps = LiveSteps(job, live, trained, batches, given["gradient_clip_val"])
    found = train_in_turns(steps, backend, given["precision"])
    return found if found is None else found | {name: np.array(values, float) for name, values in steps.noted.items()}


def main(folder: Path, backend: str) -> None:
    # of logs that are not kept
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    found = measure(read_job(folder), read_live(folder), backend)
    if found is not None:
        write_atomically(folder / "measured.npz", lambda file: np.savez(file, allow_pickle=False, **found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
