"""Router logits of Hugging Face transformers, saved by hand: .npz or .safetensors with `router_logits` and `top_k`.

    output = model(**tokens, output_router_logits=True)
    logits = torch.stack(output.router_logits)  # (L, T, E)
    numpy.savez("logits.npz", router_logits=logits.float().numpy(), top_k=model.config.num_experts_per_tok)

In .safetensors `top_k` is metadata (a string) or a tensor. The K largest logits are a token's experts, of equals the
lower number: what softmax routers do. A router with a bias or with groups chooses otherwise; record its choices
instead. Every position counts as a token, also padding.
"""

from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from traces.load import LoadTrace
from traces.readers.assemble import in_steps, integers, traces_of_choices
from traces.routing import RoutingTrace


def read(
    path: Path, files: list[Path], *, top_k: int | None = None, tokens_per_step: int | None = None
) -> tuple[LoadTrace, RoutingTrace]:
    """Each file is a step, or with `tokens_per_step` all their tokens in order are cut into steps.

    Args:
        path: named in errors about all files.
        files: one or more.
        top_k: K, instead of the files' own.
        tokens_per_step: T.

    Raises:
        ValueError: a file is damaged or lacks a field, logits are not finite, or files do not belong together.
        ImportError: safetensors is not installed and a file needs it.
    """
    blocks, numbers = [], set()
    for file in files:
        logits_LTE, own = _read(file)
        blocks.append(_choose(file, logits_LTE, _top_k(file, own if top_k is None else top_k)))
        numbers.add(logits_LTE.shape[2])
    if len(numbers) != 1:
        raise ValueError(f"{path}: router_logits differ in experts from file to file: {sorted(numbers)}")
    return traces_of_choices(path, "hugging_face", in_steps(path, blocks, tokens_per_step), numbers.pop())


def _read(file: Path) -> tuple[np.ndarray, object]:
    try:
        found = _load_safetensors(file) if file.suffix == ".safetensors" else _load_npz(file)
    except ImportError:
        raise
    # damaged bytes make the libraries raise more kinds than can be listed
    except Exception as error:
        raise ValueError(f"{file}: not a file of float arrays that can be read ({error})") from None
    logits = found.get("router_logits")
    if not isinstance(logits, np.ndarray):
        raise ValueError(f"{file}: router_logits is missing, found {sorted(found)}")
    if logits.ndim != 3 or not np.issubdtype(logits.dtype, np.floating):
        raise ValueError(f"{file}: router_logits must be floats (L, T, E), got {logits.dtype} {logits.shape}")
    return logits, found.get("top_k")


def _load_npz(file: Path) -> dict[str, object]:
    with np.load(file, allow_pickle=False) as archive:
        return dict(archive)


def _load_safetensors(file: Path) -> dict[str, object]:
    try:
        from safetensors import safe_open
    except ImportError:
        raise ImportError(f"{file}: reading it needs safetensors: pip install safetensors") from None
    with safe_open(file, framework="numpy") as archive:
        metadata = archive.metadata() or {}
        found: dict[str, object] = {"top_k": int(metadata["top_k"])} if "top_k" in metadata else {}
        for name in archive.keys():  # noqa: SIM118, it is no dictionary
            found[name] = archive.get_tensor(name)
    return found


def _top_k(file: Path, value: object) -> int:
    if value is None:
        raise ValueError(f"{file}: top_k is missing; save it with the logits or give it as top_k=K")
    number = integers(f"{file}: top_k", np.squeeze(np.asarray(value)), "")
    return int(number)


def _choose(file: Path, logits_LTE: Float[np.ndarray, "L T E"], top_k: int) -> Int[np.ndarray, "L T K"]:
    if not 0 < top_k <= logits_LTE.shape[2]:
        raise ValueError(f"{file}: top_k must lie in 1..{logits_LTE.shape[2]}, got {top_k}")
    if not np.isfinite(logits_LTE).all():
        raise ValueError(f"{file}: router_logits must be finite")
    return np.argsort(-logits_LTE, axis=-1, kind="stable")[..., :top_k]
