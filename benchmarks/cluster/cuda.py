"""CUDA devices over NCCL: this machine's, or those of all machines on which torchrun started a process a rank."""

import os

import torch

from benchmarks.cluster.ground import Ground, loopback_interface


class Cuda(Ground):
    """One CUDA device a rank.

    Without a launcher, all ranks are started here; with several nodes the devices are dealt out among them, and the
    name says that all are on one machine. Under torchrun (on SLURM: `srun torchrun ...`) each of its processes starts
    its own rank only.

    Raises:
        ValueError: on entry, where there are fewer CUDA devices than ranks, or torchrun started another number.
    """

    def __init__(self, nodes: int, devices_per_node: int) -> None:
        self._launched = "RANK" in os.environ
        together = nodes > 1 and not self._launched
        name = f"nccl, {nodes} nodes on one machine" if together else "nccl"
        super().__init__(nodes, devices_per_node, name, "nccl")

    def ranks(self) -> list[int]:
        return [int(os.environ["RANK"])] if self._launched else super().ranks()

    def environment(self, node: int) -> dict[str, str]:
        if self._launched:
            return {key: os.environ[key] for key in ("MASTER_ADDR", "MASTER_PORT")}
        first = node * self.devices_per_node
        seen = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        devices = [device for device in seen.split(",") if device] or [str(index) for index in range(self.num_ranks)]
        return {
            "MASTER_ADDR": "127.0.0.1",
            # gloo beside NCCL, for what is exchanged on the host
            "GLOO_SOCKET_IFNAME": loopback_interface(),
            "CUDA_VISIBLE_DEVICES": ",".join(devices[first : first + self.devices_per_node]),
        }

    def __enter__(self) -> "Cuda":
        needed = self.devices_per_node if self._launched else self.num_ranks
        if (found := torch.cuda.device_count()) < needed:
            raise ValueError(
                f"{needed} ranks need as many CUDA devices, this machine has {found}: take ground=loopback"
            )
        if self._launched and (started := int(os.environ["WORLD_SIZE"])) != self.num_ranks:
            raise ValueError(f"torchrun started {started} ranks, {self.nodes} x {self.devices_per_node} are asked for")
        return self
