"""The best ground that a machine offers."""

import torch

from benchmarks.cluster.cuda import Cuda
from benchmarks.cluster.emulated import EmulatedCluster
from benchmarks.cluster.ground import Ground, Loopback


def best_ground(nodes: int, devices_per_node: int, *, rate_bits_per_s: float, burst_bytes: int) -> Ground:
    """CUDA devices if there is one a rank, else an emulated cluster where namespaces are permitted, else loopback.

    Args:
        nodes, devices_per_node: of the ground.
        rate_bits_per_s, burst_bytes: of the emulated cluster's links.
    """
    if torch.cuda.device_count() >= nodes * devices_per_node:
        return Cuda(nodes, devices_per_node)
    emulated = EmulatedCluster(nodes, devices_per_node, rate_bits_per_s=rate_bits_per_s, burst_bytes=burst_bytes)
    try:
        emulated.set_up()
    except ValueError:
        return Loopback(nodes, devices_per_node)
    emulated.take_down()
    return emulated
