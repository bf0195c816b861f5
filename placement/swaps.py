"""Equal groups that as few sets as possible straddle: greedy start, then exact pair swaps (ours).

The members of a set that lie in one group cost as much as one: the cost of a set is the number of distinct groups that
it touches (hypergraph connectivity). A pair swap changes it only for sets that hold exactly one of the two, and the
change of every possible swap follows from two sums over sets, so the best swap is found exactly at each step.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

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
    """

    contains: Float[np.ndarray, "M E"]
    weight: Float[np.ndarray, " M"]
    share: Float[np.ndarray, " E"]
    num_groups: int
    load_weight: float

    def cost(self, group: Int[np.ndarray, " E"]) -> float:
        """Mean distinct groups of a set plus `load_weight` times the mean squared deviation of group shares."""
        deviation_G = np.bincount(group, self.share, self.num_groups) - 1.0
        return float(self.weight @ self.touches(group).sum(1) + self.load_weight * np.square(deviation_G).mean())

    def touches(self, group: Int[np.ndarray, " E"]) -> Float[np.ndarray, "M G"]:
        """1 where a set has a member in a group, else 0."""
        return (self.contains @ np.eye(self.num_groups)[group] > 0).astype(float)

    def best_of(self, starts: int, rng: np.random.Generator) -> Int[np.ndarray, " E"]:
        """The cheapest of several searches: one starts from the heaviest members, the others from random ones."""
        num_members = len(self.share)
        orders = [np.argsort(-self.weight @ self.contains, kind="stable")]
        orders += [rng.permutation(num_members) for _ in range(starts - 1)]
        return min((self._search(order) for order in orders), key=self.cost)

    def _search(self, order_E: Int[np.ndarray, " E"]) -> Int[np.ndarray, " E"]:
        state = Swaps(self, _greedy(self, order_E))
        while True:
            change = state.change()
            first, second = np.unravel_index(change.argmin(), change.shape)
            if change[first, second] > -SMALLEST_GAIN * (1.0 + self.load_weight):
                return state.group[: len(order_E)]
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
        short = np.flatnonzero(np.bincount(group_E, minlength=num_groups) < -(-num_members // num_groups))
        self._problem = problem
        self._num_members = num_members
        self._contains = np.pad(problem.contains, ((0, 0), (0, len(short))))
        self._share = np.pad(problem.share, (0, len(short)))
        self.group = np.append(group_E, short)
        self._count_MG = self._contains @ np.eye(num_groups)[self.group]
        rows = np.arange(len(self._contains))
        # [a, b]: weight of the sets with a and b in which a is alone in its group
        self._alone_EE = self._weigh(rows, self._alone(rows, np.arange(len(self.group)))).T
        # [a, g]: weight of the sets with a that have no member in group g
        self._absent_EG = self._weigh(rows, self._absent(rows, np.arange(num_groups)))

    def change(self) -> Float[np.ndarray, "E E"]:
        """Change of cost if two members swapped groups; infinite where they must not."""
        enter_EE = self._absent_EG[:, self.group]
        # a member leaving a group in which it was alone saves a visit, unless the other one of the swap is in the set
        leave_EE = self._alone_EE - np.diag(self._alone_EE)[:, None]
        one_way_EE = enter_EE + leave_EE
        change_EE = one_way_EE + one_way_EE.T + self._problem.load_weight * self._change_of_deviation()
        return np.where(self._forbidden(), np.inf, change_EE)

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

    def _change_of_deviation(self) -> Float[np.ndarray, "E E"]:
        num_groups = self._problem.num_groups
        share_E = np.bincount(self.group, self._share, num_groups)[self.group]
        gain_EE = self._share - self._share[:, None]
        # (x + gain)^2 - x^2 for the first one's group, (y - gain)^2 - y^2 for the other's
        return 2.0 * gain_EE * (share_E[:, None] - share_E + gain_EE) / num_groups

    def _forbidden(self) -> Bool[np.ndarray, "E E"]:
        """Within a group a swap does nothing; a second empty member would leave a group two short."""
        is_empty = np.arange(len(self.group)) >= self._num_members
        is_short = np.isin(self.group, self.group[is_empty])
        two_short = is_empty[:, None] & is_short
        return (self.group[:, None] == self.group) | two_short | two_short.T
