"""What every dispatcher can do."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from routers.base import Routing


def nothing() -> None:
    """What is done while rows travel, by default."""


@runtime_checkable
class Plan(Protocol):
    """What combine needs, and what was sent."""

    @property
    def rows_sent(self) -> Int[Tensor, " G"]:
        """(G,) rows that dispatch sent from this device to each device, the own one included; combine sends them
        back."""
        ...

    @property
    def metadata_bytes_sent(self) -> Int[Tensor, " G"]:
        """(G,) bytes that dispatch sent beside them."""
        ...


@runtime_checkable
class Dispatcher(Protocol):
    """Brings tokens to their experts and back; holds no parameters."""

    def dispatch(
        self, x_TD: Float[Tensor, "T D"], routing: Routing, meanwhile: Callable[[], object] = nothing
    ) -> tuple[Float[Tensor, "N D"], Int[Tensor, " C"], Any]:
        """Rows (N, D) for this device's slots, sorted by slot; rows of each slot (C,); the Plan.

        `meanwhile` is called once, while rows travel.
        """
        ...

    def combine(self, y_ND: Float[Tensor, "N D"], plan: Any) -> Float[Tensor, "T D"]:
        """Weighted sum of each token's expert outputs (T, D); a token without experts gets zeros."""
        ...
