"""The harness's view of our models: equal to one row a choice, and right about who is right."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from benchmarks.cell import ROOT
from benchmarks.tasks.items import Item
from benchmarks.tasks.suite import _write_items, _write_task
from models.dispatch import LocalDispatcher
from models.experts import LoopExperts
from models.transformer import Transformer
from routers.topk import TopK

pytest.importorskip("lm_eval", reason="the tasks need the extra [evaluate]")
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM, TemplateLM

from benchmarks import harness
from benchmarks.harness import HarnessModel, Row, pack, score_tasks, tree_mask

TOKENIZER = ROOT / "data" / "tokenizer" / "bpe_2k.json"
Pair = tuple[str, str]


def decoder(vocab_size: int = 2048) -> Transformer:
    """Weights large enough that choices differ."""
    torch.manual_seed(0)
    return Transformer(
        vocab_size=vocab_size,
        sequence_length=32,
        dim=16,
        num_layers=2,
        num_heads=2,
        num_experts=4,
        expert_dim=16,
        router=partial(TopK, top_k=2),
        experts=LoopExperts,
        dispatcher=LocalDispatcher(),
        moe_every=1,
        init_std=0.3,
    ).eval()


@pytest.fixture(scope="module")
def model() -> HarnessModel:
    return HarnessModel(decoder(), TOKENIZER)


class Convention(TemplateLM):
    """The harness's own way to tell context and continuation apart."""

    def __init__(self) -> None:
        super().__init__()
        self._loaded = Tokenizer.from_file(str(TOKENIZER))

    @property
    def eot_token_id(self) -> int:
        return 0

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **options: Any) -> list[int]:
        return self._loaded.encode(string).ids

    def split(self, pair: Pair) -> tuple[list[int], list[int]]:
        context, continuation = pair
        return self._encode_pair(*pair) if context else ([0], self.tok_encode(continuation))

    def _loglikelihood_tokens(self, requests: Any, **options: Any) -> Any: ...

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any: ...

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> Any: ...


def requests(pairs: Sequence[Pair]) -> Any:
    return [Instance("loglikelihood", {}, pair, 0) for pair in pairs]


def naive(transformer: Transformer, pair: Pair) -> tuple[float, bool]:
    """One row, one continuation."""
    context, continuation = Convention().split(pair)
    whole = torch.tensor([context + continuation])
    with torch.no_grad():
        log_probs = transformer(whole[:, :-1]).logits[0].log_softmax(-1)[len(context) - 1 :]
    told = log_probs.gather(1, whole[0, len(context) :, None]).sum()
    return float(told), log_probs.argmax(-1).tolist() == continuation


PAIRS = [
    ("The king is", " dead"),
    ("The king is", " dead, long live the king"),
    ("The king is", " a"),
    ("def f(x):", "\n    return x"),
    ("def f(x):\n   ", " return x"),
    ("a blank at the end ", "moves"),
    ("", "no context at all"),
    ("", " a blank"),
    ("one", " word"),
    ("El que tenga oídos", ", oiga"),
    ("The king is", " dead"),
]


class TestEqualsOneRowAChoice:
    def test_log_likelihoods(self, model: HarnessModel) -> None:
        found = model.loglikelihood(requests(PAIRS))
        expected = [naive(decoder(), pair) for pair in PAIRS]
        assert [total for total, _ in found] == pytest.approx([total for total, _ in expected], abs=1e-4)
        assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]

    def test_what_is_greedy_is_said_to_be(self, model: HarnessModel) -> None:
        context = Convention().tok_encode("The king is")
        with torch.no_grad():
            ranked = decoder()(torch.tensor([context])).logits[0, -1].argsort(descending=True).tolist()
        best, worst = model._score([Row(context, [ranked[:1], ranked[-1:]])])
        assert (best[1], worst[1]) == (True, False)
        assert best[0] > worst[0]

    @pytest.mark.parametrize("size", [1, 40, 10_000])
    def test_whatever_the_batches(self, model: HarnessModel, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
        expected = model.loglikelihood(requests(PAIRS))
        monkeypatch.setattr(harness, "TOKENS_PER_BATCH", size)
        found = model.loglikelihood(requests(PAIRS))
        assert [total for total, _ in found] == pytest.approx([total for total, _ in expected], abs=1e-4)

    @settings(max_examples=200)
    @given(st.text(" \n\tab.,'(0é", max_size=12), st.text(" \nab.'1", min_size=1, max_size=6))
    def test_text_is_split_as_the_harness_splits_it(self, context: str, continuation: str) -> None:
        if context and not context.strip():
            return  # the harness has no rule for a context of blanks alone
        expected = Convention().split((context, continuation))
        if not expected[1]:
            with pytest.raises(ValueError, match="no token of its own"):
                HarnessModel(decoder(), TOKENIZER)._rows([(context, continuation)])
            return
        (row,) = HarnessModel(decoder(), TOKENIZER)._rows([(context, continuation)])
        assert (row.context, row.continuations) == (expected[0], [expected[1]])


class TestPacking:
    ROW = Row([5, 6, 7], [[1], [2, 3], [4, 8, 9]])

    def test_a_row_by_hand(self) -> None:
        batch = pack([self.ROW], torch.device("cpu"))
        assert self.ROW.length == 6
        assert batch.token_ids.tolist() == [[5, 6, 7, 2, 4, 8]]
        assert batch.position.tolist() == [[0, 1, 2, 3, 3, 4]]
        assert batch.part.tolist() == [[0, 0, 0, 2, 3, 3]]
        assert batch.source.tolist() == [2, 2, 3, 2, 4, 5]
        assert batch.target.tolist() == [1, 2, 3, 4, 8, 9]
        assert batch.owner.tolist() == [0, 1, 1, 2, 2, 2]

    def test_continuations_do_not_see_one_another(self) -> None:
        mask = tree_mask(pack([self.ROW, self.ROW], torch.device("cpu")).part)
        assert mask.shape == (2, 6, 6)
        assert [row.nonzero().flatten().tolist() for row in mask[1]] == [
            [0],
            [0, 1],
            [0, 1, 2],
            [0, 1, 2, 3],
            [0, 1, 2, 4],
            [0, 1, 2, 4, 5],
        ]


class Oracle(LM):
    """Answers by a rule about whether a continuation is right."""

    def __init__(self, items: Sequence[Item], rule: Callable[[bool], float]) -> None:
        super().__init__()
        self._right = {(item.context, item.choices[item.answer]) for item in items}
        self._rule = rule

    def loglikelihood(self, requests: Any) -> list[tuple[float, bool]]:
        return [(self._rule(request.args in self._right), False) for request in requests]

    def loglikelihood_rolling(self, requests: Any) -> Any: ...

    def generate_until(self, requests: Any) -> Any: ...


class TestScores:
    ITEMS = tuple(Item(f"question {n},", tuple(f" choice {c}" for c in range(4)), n % 4) for n in range(12))

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        _write_items(tmp_path, "moelab_toy", list(self.ITEMS))
        _write_task(tmp_path, "moelab_toy")
        return tmp_path

    @pytest.mark.parametrize(
        ("rule", "accuracy"),
        [
            (lambda right: 0.0 if right else -9.0, 1.0),
            (lambda right: -9.0 if right else 0.0, 0.0),
            # a model that cannot tell answers by place, and each place is right equally often
            (lambda right: -1.0, 0.25),
        ],
        ids=["knows", "prefers the wrong", "does not care"],
    )
    def test_of_models_whose_answers_are_known(
        self, folder: Path, rule: Callable[[bool], float], accuracy: float
    ) -> None:
        score = score_tasks(Oracle(self.ITEMS, rule), folder, ["moelab_toy"], 12)["moelab_toy"]
        assert (score.accuracy, score.chance, len(score.correct)) == (accuracy, 0.25, 12)

    def test_stand_in_the_order_of_the_items(self, folder: Path) -> None:
        score = score_tasks(Oracle(self.ITEMS[3:5], float), folder, ["moelab_toy"], 12)["moelab_toy"]
        # those without an answer go to the first place
        assert score.correct.nonzero()[0].tolist() == [0, 3, 4, 8]

    def test_the_fingerprint_is_of_the_items(self, folder: Path) -> None:
        oracle = Oracle(self.ITEMS, float)
        fingerprints = [score_tasks(oracle, folder, ["moelab_toy"], n)["moelab_toy"].fingerprint for n in (5, 5, 6)]
        assert fingerprints[0] == fingerprints[1] != fingerprints[2]

    def test_nothing_is_kept_in_the_home_folder(self, folder: Path) -> None:
        score_tasks(Oracle(self.ITEMS, float), folder, ["moelab_toy"], 1)
        assert any((folder / "datasets").iterdir())


def test_a_model_of_another_vocabulary_is_named() -> None:
    with pytest.raises(ValueError, match=r"the model has 64 tokens, the tokenizer .*bpe_2k.json has 2048"):
        HarnessModel(decoder(vocab_size=64), TOKENIZER)


def test_an_item_beyond_the_window_is_named(model: HarnessModel) -> None:
    with pytest.raises(ValueError, match="the model takes at most 32"):
        model.loglikelihood(requests([("word " * 40, " end")]))


@pytest.mark.parametrize(
    ("method", "said"), [("loglikelihood_rolling", "whole texts"), ("generate_until", "do not generate text")]
)
def test_what_is_not_offered_says_so(model: HarnessModel, method: str, said: str) -> None:
    with pytest.raises(NotImplementedError, match=said):
        getattr(model, method)([])


def test_without_lm_eval_it_names_the_extra() -> None:
    program = "import sys; sys.modules['lm_eval'] = None; import benchmarks.harness"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.strip().endswith("the downstream tasks need lm-eval: pip install -e .[evaluate]")
