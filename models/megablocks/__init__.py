"""MegaBlocks (Gale et al., 2022, arXiv 2211.15841) in our models: its local compute, its stock layer as a baseline.

It is no dependency: `make megablocks` installs it. Importing this package does not import it.
"""

from models.megablocks.dmoe import StockDMoE
from models.megablocks.experts import MegaBlocksExperts, best_experts
from models.megablocks.native import check_label, is_installed, load, may_be_called_megablocks, native_parts

__all__ = [
    "MegaBlocksExperts",
    "StockDMoE",
    "best_experts",
    "check_label",
    "is_installed",
    "load",
    "may_be_called_megablocks",
    "native_parts",
]
