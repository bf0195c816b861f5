"""Equal groups that as few sets as possible straddle: greedy start, then exact pair swaps (ours).

The members of a set that lie in one group cost as much as one: the cost of a set is the number of distinct groups that
it touches (hypergraph connectivity). A pair swap changes it only for sets that hold exactly one of the two, and the
change of every possible swap follows from two sums over sets, so the best swap is found exactly at each step.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment

# above what rounding leaves of a sum of weights that add up to 1, and below one token of 10^9: searches end
SMALLEST_GAIN = 1e-10


@dataclass(frozen=True, eq=False)
class Grouping:
    """What is to be grouped, and what a grouping costs.

    Attributes:
        contains: (M, E) 1 where a set contains a member, else 0.
        weight: (M,) share of each set.
        share: (E,) load of each member over the mean load of a group.
        num_groups: G.
        load_weight: cost of a mean squared deviation of 1 in the groups' shares.
        price: (E, G) cost of each member in each group; None for none.
        slots: members that a group can hold; None for sizes that differ by one at most.
        free: (M, G) whether a set touches a group at no cost: the device on which its tokens start; None for nowhere.
    """

    contains: Float[np.ndarray, "M E"]
    weight: Float[np.ndarray, " M"]
    share: Float[np.ndarray, " E"]
    num_groups: int
    load_weight: float
    price: Float[np.ndarray, "E G"] | None = None
    slots: int | None = None
    free: Bool[np.ndarray, "M G"] | None = None

    def cost(self, group: Int[np.ndarray, " E"]) -> float:
        """Distinct groups of a set plus prices plus `load_weight` times the mean squared deviation of group shares."""
        deviation_G = np.bincount(group, self.share, self.num_groups) - 1.0
        return self.fixed_cost(group) + float(self.load_weight * np.square(deviation_G).mean())

    def cost_of_worst(self, group: Int[np.ndarray, " E"]) -> float:
        """As `cost`, but `load_weight` times what the largest group share is above 1."""
        share_G = np.bincount(group, self.share, self.num_groups)
        return self.fixed_cost(group) + self.load_weight * float(share_G.max() - 1.0)

    def fixed_cost(self, group: Int[np.ndarray, " E"]) -> float:
        """Distinct groups of a set that are not free, by the weight of the sets, plus the members' prices."""
        price = 0.0 if self.price is None else self.price[np.arange(len(group)), group].sum()
        touches_MG = self.touches(group)
        paid_MG = touches_MG if self.free is None else touches_MG * ~self.free
        return float(self.weight @ paid_MG.sum(1) + price)

    def touches(self, group: Int[np.ndarray, " E"]) -> Float[np.ndarray, "M G"]:
        """1 where a set has a member in a group, else 0."""
        return (self.contains @ np.eye(self.num_groups)[group] > 0).astype(float)

    def renamed(self, group: Int[np.ndarray, " E"]) -> Int[np.ndarray, " E"]:
        """The same grouping under the names of groups for which `fixed_cost` is least (an assignment problem)."""
        cost_GG = np.zeros((self.num_groups, self.num_groups))
        if self.price is not None:
            cost_GG += np.eye(self.num_groups)[group].T @ self.price
        if self.free is not None:
            cost_GG -= (self.weight[:, None] * self.touches(group)).T @ self.free
        return linear_sum_assignment(cost_GG)[1][group]

    def best_of(self, starts: int, rng: np.random.Generator) -> Int[np.ndarray, " E"]:
        """The cheapest of several searches: one starts from the heaviest members, the others from random ones."""
        return min((self.descend(start) for start in self.starts(starts, rng)), key=self.cost)

    def starts(self, num: int, rng: np.random.Generator) -> list[Int[np.ndarray, " E"]]:
        """Groupings to search from: one filled from the heaviest members, the others from random ones."""
        num_members = len(self.share)
        orders = [np.argsort(-self.weight @ self.contains, kind="stable")]
        orders += [rng.permutation(num_members) for _ in range(num - 1)]
        return [_greedy(self, order) for order in orders]

    def descend(self, group: Int[np.ndarray, " E"]) -> Int[np.ndarray, " E"]:
        """The grouping after the best swap, again and again until none lowers `cost`."""
        return self._search(group, Swaps.change)

    def polish(self, group: Int[np.ndarray, " E"]) -> Int[np.ndarray, " E"]:
        """The same until none lowers `cost_of_worst`."""
        return self._search(group, Swaps.change_of_worst)

    def _search(
        self, group_E: Int[np.ndarray, " E"], change_of: Callable[["Swaps"], Float[np.ndarray, "E E"]]
    ) -> Int[np.ndarray, " E"]:
        state = Swaps(self, group_E)
        while True:
            change = change_of(state)
            first, second = np.unravel_index(change.argmin(), change.shape)
            if change[first, second] > -SMALLEST_GAIN * (1.0 + self.load_weight):
                return state.group[: len(group_E)]
            state.swap(int(first), int(second))


def _greedy(problem: Grouping, order_E: Int[np.ndarray, " E"]) -> Int[np.ndarray, " E"]:
    """Fill group after group: the first free member in order, then always the one that shares most sets with them."""
    affinity_EE = (problem.contains * problem.weight[:, None]).T @ problem.contains
    group_E = np.full(len(order_E), -1)
    for group, members in enumerate(np.array_split(order_E, problem.num_groups)):
        attraction_E = np.zeros(len(order_E))
        chosen = order_E[group_E[order_E] < 0][0]
        for _ in members:
            group_E[chosen] = group
            attraction_E += affinity_EE[chosen]
            chosen = np.where(group_E < 0, attraction_E, -1.0).argmax()
    return group_E


class Swaps:
    """A grouping and the change of cost of each swap; groups one member short are filled up with empty members."""

    def __init__(self, problem: Grouping, group_E: Int[np.ndarray, " E"]) -> None:
        num_members, num_groups = len(group_E), problem.num_groups
        slots = -(-num_members // num_groups) if problem.slots is None else problem.slots
        short = np.repeat(np.arange(num_groups), slots - np.bincount(group_E, minlength=num_groups))
        self._problem = problem
        self._num_members = num_members
        self._contains = np.pad(problem.contains, ((0, 0), (0, len(short))))
        self._share = np.pad(problem.share, (0, len(short)))
        self._price_EG = None if problem.price is None else np.pad(problem.price, ((0, len(short)), (0, 0)))
        self.group = np.append(group_E, short)
        # a free group counts as one that two other members keep touched: none enters or leaves it at a cost
        kept_MG = 0.0 if problem.free is None else 2.0 * problem.free
        self._count_MG = self._contains @ np.eye(num_groups)[self.group] + kept_MG
        rows = np.arange(len(self._contains))
        # [a, b]: weight of the sets with a and b in which a is alone in its group
        self._alone_EE = self._weigh(rows, self._alone(rows, np.arange(len(self.group)))).T
        # [a, g]: weight of the sets with a that have no member in group g
        self._absent_EG = self._weigh(rows, self._absent(rows, np.arange(num_groups)))

    def change(self) -> Float[np.ndarray, "E E"]:
        """Change of `Grouping.cost` if two members swapped groups; infinite where they must not."""
        return self._allowed(self._change_of_fixed() + self._problem.load_weight * self._change_of_deviation())

    def change_of_worst(self) -> Float[np.ndarray, "E E"]:
        """The same of `Grouping.cost_of_worst`."""
        return self._allowed(self._change_of_fixed() + self._problem.load_weight * self._change_of_largest())

    def swap(self, first: int, second: int) -> None:
        """Swap two members and bring the sums up to date, over the sets and groups that the swap touches."""
        rows = np.flatnonzero(self._contains[:, first] + self._contains[:, second])
        groups = self.group[[first, second]]
        members = np.flatnonzero(np.isin(self.group, groups))
        alone_before, absent_before = self._alone(rows, members), self._absent(rows, groups)
        self.group[[first, second]] = groups[::-1]
        moved_M = self._contains[rows, first] - self._contains[rows, second]
        self._count_MG[rows[:, None], groups] += moved_M[:, None] * [-1.0, 1.0]
        self._alone_EE[members] += self._weigh(rows, self._alone(rows, members) - alone_before).T
        self._absent_EG[:, groups] += self._weigh(rows, self._absent(rows, groups) - absent_before)

    def _alone(self, rows: Int[np.ndarray, " m"], members: Int[np.ndarray, " e"]) -> Float[np.ndarray, "m e"]:
        """1 where a set has the member and no other one of its group."""
        is_one = self._count_MG[rows[:, None], self.group[members]] == 1
        return self._contains[rows[:, None], members] * is_one

    def _absent(self, rows: Int[np.ndarray, " m"], groups: Int[np.ndarray, " g"]) -> Float[np.ndarray, "m g"]:
        """1 where a set has no member of the group."""
        return (self._count_MG[rows[:, None], groups] == 0).astype(float)

    def _weigh(self, rows: Int[np.ndarray, " m"], values: Float[np.ndarray, "m x"]) -> Float[np.ndarray, "E x"]:
        """Sum of the values over each member's sets, by the weight of the sets."""
        return self._contains[rows].T @ (self._problem.weight[rows, None] * values)

    def _change_of_fixed(self) -> Float[np.ndarray, "E E"]:
        enter_EE = self._absent_EG[:, self.group]
        # a member leaving a group in which it was alone saves a visit, unless the other one of the swap is in the set
        leave_EE = self._alone_EE - np.diag(self._alone_EE)[:, None]
        one_way_EE = enter_EE + leave_EE
        if self._price_EG is not None:
            price_EE = self._price_EG[:, self.group]
            one_way_EE += price_EE - np.diag(price_EE)[:, None]
        return one_way_EE + one_way_EE.T

    def _change_of_deviation(self) -> Float[np.ndarray, "E E"]:
        share_E, gain_EE = self._shares()[self.group], self._gain()
        # (x + gain)^2 - x^2 for the first one's group, (y - gain)^2 - y^2 for the other's
        return 2.0 * gain_EE * (share_E[:, None] - share_E + gain_EE) / self._problem.num_groups

    def _change_of_largest(self) -> Float[np.ndarray, "E E"]:
        share_G, gain_EE = self._shares(), self._gain()
        share_E = share_G[self.group]
        pair_EE = np.maximum(share_E[:, None] + gain_EE, share_E - gain_EE)
        others_EE = _largest_of_others(share_G)[self.group[:, None], self.group]
        return np.maximum(pair_EE, others_EE) - share_G.max()

    def _shares(self) -> Float[np.ndarray, " G"]:
        return np.bincount(self.group, self._share, self._problem.num_groups)

    def _gain(self) -> Float[np.ndarray, "E E"]:
        """What the first one's group gains."""
        return self._share - self._share[:, None]

    def _allowed(self, change_EE: Float[np.ndarray, "E E"]) -> Float[np.ndarray, "E E"]:
        return np.where(self._forbidden(), np.inf, change_EE)

    def _forbidden(self) -> Bool[np.ndarray, "E E"]:
        """Within a group a swap does nothing; where sizes differ by one, a second empty member is one too many."""
        same_EE = self.group[:, None] == self.group
        if self._problem.slots is not None:
            return same_EE
        is_empty = np.arange(len(self.group)) >= self._num_members
        is_short = np.isin(self.group, self.group[is_empty])
        two_short = is_empty[:, None] & is_short
        return same_EE | two_short | two_short.T


def _largest_of_others(share_G: Float[np.ndarray, " G"]) -> Float[np.ndarray, "G G"]:
    """For each two groups the largest share of all others: one of the three largest there are; -inf without others."""
    groups, shares = np.arange(len(share_G)), np.append(share_G, -np.inf)
    largest = np.pad(np.argsort(-share_G), (0, 2), constant_values=len(share_G))[:3]
    # [k, g, h]: whether g or h is the group with the k-th largest share
    is_pair_2GG = (groups[:, None] == largest[:2, None, None]) | (groups == largest[:2, None, None])
    first, second, third = shares[largest]
    return np.where(~is_pair_2GG[0], first, np.where(~is_pair_2GG[1], second, third))
