"""Top-k with a soft penalty on the devices a token is expected to reach (ours): the gate learns to stay on few devices,
no choice is forbidden."""

from jaxtyping import Float, Int
from torch import Tensor

from routers.devices import DeviceRouter


class SoftDevices(DeviceRouter):
    """The K best-scored experts; all the method is in the loss `devices`."""

    def select(self, scores: Float[Tensor, "T E"], token_ids: Int[Tensor, " T"] | None = None) -> Int[Tensor, "T K"]:
        return scores.topk(self.top_k, dim=-1).indices
