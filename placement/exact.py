"""Proven optima, for small layers: what a heuristic plan is at most away from (ours).

- `least_visits_of_few`: dynamic programming over sets of experts, to 16 experts.
- `least_visits`: set partitioning over all groups of experts that can share a device, to 32 experts on 8 devices.
- `least_maximum`: a mixed-integer programme for balance, to about 16 experts.

The programmes are solved by HiGHS (Huangfu and Hall, 2018, doi:10.1007/s12532-017-0130-5), through scipy.
"""

from functools import cache
from itertools import combinations
from math import comb
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Real
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, OptimizeResult, linprog, milp

from placement.balance import device_share
from placement.colocate import membership, proportion
from placement.swaps import Grouping
from placement.topology import check_fits
from traces.routing import ExpertSets

MOST_EXPERTS, MOST_GROUPS = 16, 200_000
# of costs around 1: what HiGHS may leave of a constraint
TOLERANCE = 1e-9


class Optimum(NamedTuple):
    """A proven optimum of one layer.

    Attributes:
        cost: of the best plan.
        device: (E,) the plan: device of each expert.
    """

    cost: float
    device: Int[np.ndarray, " E"]


def least_visits_of_few(
    sets: ExpertSets, load: Real[np.ndarray, " E"], num_devices: int, load_weight: float = 0.0
) -> Optimum:
    """The least C_T + load_weight x mean squared deviation of device loads, in sizes that differ by one at most.

    The cost adds up over devices, so the best plan of a set of experts is its best first device plus the best plan of
    the rest, for each of the 2^E sets.

    Raises:
        ValueError: more experts than 16, or more devices than experts.
    """
    num_experts = len(load)
    check_fits(num_experts, num_devices, num_experts)
    if num_experts > MOST_EXPERTS:
        raise ValueError(f"dynamic programming takes {MOST_EXPERTS} experts at most, got {num_experts}")
    groups = np.arange(2**num_experts)
    cost_S = _group_cost(groups, sets, load, num_devices, load_weight)
    size_S = ((groups[:, None] >> np.arange(num_experts)) & 1).sum(1)
    small, num_big = divmod(num_experts, num_devices)

    @cache
    def best(left: int, big: int, devices: int) -> tuple[float, tuple[int, ...]]:
        if devices == 0:
            return 0.0, ()
        # the group of the lowest expert left, of every size that must still occur
        sizes = [small + 1] * (big > 0) + [small] * (devices > big)
        fits = groups[np.isin(size_S, sizes) & (groups & ~left == 0) & (groups & left & -left > 0)]
        found = []
        for group in map(int, fits):
            cost, others = best(left & ~group, big - int(size_S[group] > small), devices - 1)
            found.append((cost_S[group] + cost, (group, *others)))
        return min(found)

    cost, chosen = best(2**num_experts - 1, num_big, num_devices)
    return Optimum(float(cost), _device_of(np.array(chosen), num_experts))


def least_visits(
    sets: ExpertSets,
    load: Real[np.ndarray, " E"],
    num_devices: int,
    load_weight: float = 0.0,
    seconds: float = 120.0,
) -> Optimum:
    """The same optimum for more experts: choose groups, one a device, that hold each expert once at the least cost.

    The linear relaxation prices every expert. A group that costs more over its experts' prices than a known plan costs
    over the relaxation is in no better plan, and few of the groups remain for the integer programme.

    Args:
        seconds: limit of the integer programme.

    Raises:
        ValueError: more groups of experts than 200,000, or more devices than experts.
        RuntimeError: no proof within the limit.
    """
    num_experts = len(load)
    check_fits(num_experts, num_devices, num_experts)
    members = _possible_groups(num_experts, num_devices)
    groups = np.array([sum(1 << expert for expert in group) for group in members])
    cost_S = _group_cost(groups, sets, load, num_devices, load_weight)
    holds_ES = _incidence(members, num_experts)
    wanted = np.append(np.ones(num_experts), num_devices)
    relaxed = linprog(cost_S, A_eq=holds_ES, b_eq=wanted, bounds=(0, None))
    assert relaxed.success, relaxed.message
    over_prices_S = cost_S - holds_ES.T @ relaxed.eqlin.marginals
    left = np.flatnonzero(over_prices_S <= _known(sets, load, num_devices, load_weight) - relaxed.fun + TOLERANCE)
    found = milp(
        cost_S[left],
        constraints=(holds_ES[:, left], wanted, wanted),
        integrality=1,
        bounds=Bounds(0, 1),
        options={"time_limit": seconds, "mip_rel_gap": 0.0},
    )
    _check_proven(found, seconds)
    return Optimum(float(found.fun), _device_of(groups[left[found.x > 0.5]], num_experts))


def least_maximum(
    load: Real[np.ndarray, " E"], num_devices: int, slots_per_device: int, seconds: float = 60.0
) -> Optimum:
    """The least max/mean of device loads of any plan with each expert on one device; 1 where there is no load.

    Args:
        seconds: limit of the integer programme.

    Raises:
        ValueError: more devices than experts, or fewer slots than experts.
        RuntimeError: no proof within the limit.
    """
    num_experts = len(load)
    check_fits(num_experts, num_devices, slots_per_device)
    share_E = device_share(load, num_devices)
    if not share_E.any():
        return Optimum(1.0, np.arange(num_experts) % num_devices)
    # variable e * G + g: whether device g holds expert e; the last one is the largest device load
    devices_GG = np.eye(num_devices)
    once = np.kron(np.eye(num_experts), np.ones(num_devices))
    taken, held = np.kron(share_E, devices_GG), np.kron(np.ones(num_experts), devices_GG)
    integer_V = np.append(np.ones(num_experts * num_devices), 0)
    found = milp(
        1.0 - integer_V,
        constraints=[
            LinearConstraint(np.pad(once, ((0, 0), (0, 1))), 1, 1),
            LinearConstraint(np.pad(taken, ((0, 0), (0, 1)), constant_values=-1), -np.inf, 0),
            LinearConstraint(np.pad(held, ((0, 0), (0, 1))), 0, slots_per_device),
        ],
        integrality=integer_V,
        bounds=(1.0 - integer_V, np.append(np.ones(num_experts * num_devices), np.inf)),
        options={"time_limit": seconds, "mip_rel_gap": 0.0},
    )
    _check_proven(found, seconds)
    device_E = found.x[:-1].reshape(num_experts, num_devices).argmax(1)
    # not the programme's own number, which may be off by its tolerance
    return Optimum(float(np.bincount(device_E, share_E, num_devices).max()), device_E)


def _possible_groups(num_experts: int, num_devices: int) -> list[tuple[int, ...]]:
    small, num_big = divmod(num_experts, num_devices)
    sizes = [small] * (num_big < num_devices) + [small + 1] * (num_big > 0)
    num_groups = sum(comb(num_experts, size) for size in sizes)
    if num_groups > MOST_GROUPS:
        raise ValueError(
            f"{num_experts} experts on {num_devices} devices form {num_groups} groups, more than {MOST_GROUPS}"
        )
    return [group for size in sizes for group in combinations(range(num_experts), size)]


def _incidence(members: list[tuple[int, ...]], num_experts: int) -> sparse.csr_array:
    """(E + 1, S): which experts a group holds; the last row counts groups."""
    column = np.repeat(np.arange(len(members)), [len(group) + 1 for group in members])
    row = np.concatenate([(*group, num_experts) for group in members])
    return sparse.csr_array((np.ones(len(row)), (row, column)), shape=(num_experts + 1, len(members)))


def _group_cost(
    groups: Int[np.ndarray, " S"], sets: ExpertSets, load: np.ndarray, num_devices: int, load_weight: float
) -> Float[np.ndarray, " S"]:
    """What each group of experts (a bit each) adds to the cost as one device's."""
    num_experts = len(load)
    bits_ES = (groups >> np.arange(num_experts)[:, None]) & 1
    cost_S = load_weight * np.square(device_share(load, num_devices) @ bits_ES - 1.0) / num_devices
    contains_ME = membership(sets, num_experts).astype(np.int64)
    for set_bits, weight in zip(contains_ME @ (1 << np.arange(num_experts)), proportion(sets.count), strict=True):
        cost_S += weight * (groups & set_bits != 0)
    return cost_S


def _known(sets: ExpertSets, load: np.ndarray, num_devices: int, load_weight: float) -> float:
    """The cost of a plan that the search finds."""
    contains_ME, share_E = membership(sets, len(load)), device_share(load, num_devices)
    problem = Grouping(contains_ME, proportion(sets.count), share_E, num_devices, load_weight)
    return problem.cost(problem.best_of(16, np.random.default_rng(0)))


def _device_of(groups: Int[np.ndarray, " G"], num_experts: int) -> Int[np.ndarray, " E"]:
    return ((groups[:, None] >> np.arange(num_experts)) & 1).argmax(0)


def _check_proven(found: OptimizeResult, seconds: float) -> None:
    if found.status != 0:
        raise RuntimeError(f"no proof within {seconds} s: {found.message}")
