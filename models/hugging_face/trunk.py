"""The layers below those that are trained: what they compute of a sequence never changes, so it is computed once.

Each sequence is a file, named after the sha256 of the weights and of all that the computation depends on, written
whole or not at all: processes side by side share the folder, and a killed run loses nothing. Values are kept in
float16, and what was not kept is rounded likewise, so that a first run equals a repeated one.
"""

import copy
import hashlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from traces.atomic import write_atomically


class TrunkCache:
    """Hidden states by the hash of what they are a function of.

    Args:
        folder: made if it is missing.
        identity: of the layers' weights.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self._folder, self._identity = Path(folder) / identity[:16], identity

    def path(self, *of: Tensor) -> Path:
        """The file of one sequence."""
        digest = hashlib.sha256(self._identity.encode())
        for tensor in of:
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
        name = digest.hexdigest()
        return self._folder / name[:2] / f"{name[2:34]}.npy"

    @staticmethod
    def read(path: Path) -> Float[Tensor, "S D"] | None:
        """What was kept, or None."""
        return torch.from_numpy(np.load(path, allow_pickle=False)) if path.exists() else None

    @staticmethod
    def write(path: Path, x_SD: Float[Tensor, "S D"]) -> None:
        """Keep one sequence."""
        write_atomically(path, partial(np.save, arr=x_SD.cpu().numpy()))


class Trunk:
    """The embedding and first layers of a model, in evaluation mode and without gradients.

    Args:
        inner: the model without its output embedding.
        num_layers: decoder layers from the first.
        cache: folder of what was computed; None = nothing is kept.
    """

    def __init__(self, inner: Any, num_layers: int, cache: Path | None) -> None:
        self.inner = some_layers(inner, slice(num_layers), nn.Identity()).eval().requires_grad_(False)
        self._cache = None if cache is None else TrunkCache(cache, weights_hash(self.inner))

    def __call__(
        self, token_ids: Int[Tensor, "B S"], positions: Int[Tensor, "B S"], attend: Bool[Tensor, "B S S"] | None
    ) -> Float[Tensor, "B S D"]:
        """Hidden states (B, S, D), float32, on the tokens' device."""
        dtype = next(self.inner.parameters()).dtype
        if self._cache is None:
            return self._compute(token_ids, positions, attend).to(dtype)
        rows = [(ids, places) for ids, places in zip(token_ids, positions, strict=True)]
        if attend is not None:
            rows = [(*row, sees) for row, sees in zip(rows, attend, strict=True)]
        paths = [self._cache.path(*row) for row in rows]
        found = [self._cache.read(path) for path in paths]
        missing = [number for number, one in enumerate(found) if one is None]
        if missing:
            seen = None if attend is None else attend[missing]
            for number, x_SD in zip(missing, self._compute(token_ids[missing], positions[missing], seen), strict=True):
                self._cache.write(paths[number], x_SD)
                found[number] = x_SD
        # in the weights' own precision first: autocast does not stack float16
        return torch.stack([one.to(token_ids.device, dtype) for one in found if one is not None])

    @torch.no_grad()
    def _compute(
        self, token_ids: Int[Tensor, "B S"], positions: Int[Tensor, "B S"], attend: Bool[Tensor, "B S S"] | None
    ) -> Float[Tensor, "B S D"]:
        """Hidden states in float16.

        Raises:
            ValueError: values beyond float16.
        """
        self.inner.to(token_ids.device)
        mask = None if attend is None else attend[:, None]
        x = self.inner(token_ids, position_ids=positions, attention_mask=mask, use_cache=False).last_hidden_state
        half = x.half()
        if not half.isfinite().all():
            raise ValueError(f"hidden states reach {x.abs().max():.3g}, beyond float16: they cannot be kept")
        return half


def some_layers(inner: Any, chosen: slice, norm: nn.Module) -> Any:
    """A model of some of another's decoder layers, which they share."""
    layers = nn.ModuleList(list(inner.layers)[chosen])
    config = copy.copy(inner.config)
    config.num_hidden_layers = len(layers)
    with torch.device("meta"):
        part = type(inner)(config)
    part.embed_tokens, part.rotary_emb = inner.embed_tokens, inner.rotary_emb
    part.layers, part.norm = layers, norm
    return part


def weights_hash(module: nn.Module) -> str:
    """sha256 over all parameters of a module, names included."""
    digest = hashlib.sha256()
    for name, parameter in module.named_parameters():
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
