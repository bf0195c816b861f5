import json
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.callbacks import ModelCheckpoint

from benchmarks.corpus import write_domain
from benchmarks.tokenizer import train_tokenizer
from models.corpus import SEPARATOR, load_corpus, read_documents, split_documents
from models.data import TextDataModule
from models.stream import Blocks, TokenStream

WORDS = {
    "animals": ["cat", "dog", "horse", "sheep", "goose"],
    "numbers": ["one", "two", "three", "four", "five"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A corpus of two domains in `text/` and a tokenizer beside it."""
    folder = tmp_path_factory.mktemp("corpus")
    generator = np.random.default_rng(0)
    entries, everything = {}, []
    for name, words in WORDS.items():
        documents = [f"{i} " + " ".join(generator.choice(words, 60)) + "\n" for i in range(40)]
        entries[name] = write_domain(name, documents, folder / "text", compress=name == "animals")
        everything += documents
    (folder / "text" / "SOURCES.json").write_text(json.dumps({"domains": entries}))
    train_tokenizer(everything, 280).save(str(folder / "tokenizer.json"))
    return folder


def make_data(folder: Path, **changes) -> TextDataModule:
    arguments = {"sequence_length": 8, "sequences_per_batch": 4, "seed": 3, "num_batches": 12}
    arguments |= {"cache": folder / "cache", "val_sequences_per_domain": 5}
    return TextDataModule(folder / "text", folder / "tokenizer.json", **(arguments | changes))


def load(folder: Path, **changes):
    return load_corpus(
        **({"root": folder / "text", "tokenizer_path": folder / "tokenizer.json", "cache": folder / "cache"} | changes)
    )


class TestCorpus:
    def test_tokens_decode_to_the_documents(self, folder):
        from tokenizers import Tokenizer

        tokenizer, corpus = Tokenizer.from_file(str(folder / "tokenizer.json")), load(folder)
        for name in WORDS:
            train, held_out = split_documents(read_documents(folder / "text", name))
            for documents, tokens in ((train, corpus.train[name]), (held_out, corpus.held_out[name])):
                assert tokens.dtype == np.uint16
                assert tokenizer.decode(tokens.tolist(), skip_special_tokens=False) == "".join(
                    document + SEPARATOR for document in documents
                )

    def test_cache_is_read_and_gives_the_same(self, folder, monkeypatch):
        first = load(folder)
        monkeypatch.setattr("models.corpus._tokenise", lambda *_: pytest.fail("tokenised again"))
        second = load(folder)
        assert first.fingerprint == second.fingerprint
        np.testing.assert_array_equal(first.train["animals"], second.train["animals"])

    def test_fingerprint_depends_on_the_domains(self, folder):
        assert load(folder).fingerprint != load(folder, domains=["numbers", "animals"]).fingerprint
        assert load(folder, domains=["numbers"]).domains == ("numbers",)

    def test_changed_text_is_refused(self, folder, tmp_path):
        (tmp_path / "SOURCES.json").write_bytes((folder / "text/SOURCES.json").read_bytes())
        (tmp_path / "numbers.txt").write_text("one" + SEPARATOR + "two")
        with pytest.raises(ValueError, match=r"numbers\.txt has sha256 .*SOURCES\.json says.*make corpus"):
            load(folder, root=tmp_path, cache=tmp_path / "cache", domains=["numbers"])
        assert not (tmp_path / "cache").exists()
        with pytest.raises(FileNotFoundError, match=r"animals\.txt\.xz is missing"):
            load(folder, root=tmp_path, cache=tmp_path / "cache", domains=["animals"])

    @pytest.mark.parametrize(
        ("changes", "error", "message"),
        [
            ({"root": Path("nowhere")}, FileNotFoundError, "no corpus at nowhere.*make corpus"),
            ({"tokenizer_path": Path("no.json")}, FileNotFoundError, r"no tokenizer at no\.json.*benchmarks"),
            (
                {"domains": ["animals", "plants"]},
                ValueError,
                r"unknown \['plants'\].*has \['animals', 'numbers'\]",
            ),
            ({"domains": ["animals", "animals"]}, ValueError, "repeated"),
            ({"domains": []}, ValueError, "empty"),
        ],
    )
    def test_wrong_argument_is_named(self, folder, changes, error, message):
        with pytest.raises(error, match=message):
            load(folder, **changes)

    @given(st.lists(st.text(min_size=1), min_size=2, max_size=40, unique=True))
    def test_held_out_is_a_disjoint_tail_of_at_least_the_share(self, documents):
        train, held_out = split_documents(documents)
        assert train + held_out == documents
        assert train
        assert held_out
        size = sum(len(document.encode()) for document in documents)
        # only a corpus that is one document and a short rest cannot give the share
        assert sum(len(document.encode()) for document in held_out) >= 0.05 * size or len(train) == 1

    def test_one_document_cannot_be_split(self):
        with pytest.raises(ValueError, match="'poem' has 1 document"):
            split_documents(["alone"], "poem")


def batches_equal(one, other) -> bool:
    return all(torch.equal(a[key], b[key]) for a, b in zip(one, other, strict=True) for key in ("tokens", "domain"))


TOKENS = {"a": np.arange(0, 101, dtype=np.uint16), "b": np.arange(1000, 1047, dtype=np.uint16)}


class TestStream:
    def test_windows_share_only_their_edge_and_stay_in_their_domain(self):
        blocks = Blocks(TOKENS, 10)
        batch = blocks.batch(np.arange(len(blocks)))
        assert blocks.counts.tolist() == [10, 4]
        assert batch["tokens"][:, 0].tolist() == [*range(0, 100, 10), *range(1000, 1040, 10)]
        assert batch["tokens"].dtype == batch["domain"].dtype == torch.int64
        assert torch.equal(batch["tokens"][:, -1] - batch["tokens"][:, 0], torch.full((14,), 10))
        assert torch.equal(batch["domain"], (batch["tokens"][:, 0] >= 1000).long())

    @given(st.integers(1, 20), st.integers(0, 5))
    def test_an_epoch_holds_every_block_once_in_an_order_of_its_own(self, sequences_per_batch, seed):
        blocks = Blocks(TOKENS, 10)
        stream = TokenStream(blocks, sequences_per_batch, seed)
        count = -(-3 * len(blocks) // sequences_per_batch)
        first = torch.cat([stream.batch(t)["tokens"][:, 0] for t in range(count)])[: 3 * len(blocks)]
        epochs = first.reshape(3, len(blocks))
        assert torch.equal(epochs.sort(1).values, epochs[:1].sort(1).values.expand(3, -1))
        assert not torch.equal(epochs[0], epochs[1])

    @given(st.integers(0, 40), st.sampled_from([1, 2, 3, 4, 6, 12]), st.integers(0, 3))
    def test_ranks_together_see_the_batch_of_one(self, index, world_size, seed):
        whole = TokenStream(Blocks(TOKENS, 10), 12, seed).batch(index)
        for rank in range(world_size):
            part = TokenStream(Blocks(TOKENS, 10), 12, seed).batch(index, rank, world_size)
            assert torch.equal(part["tokens"], whole["tokens"][rank::world_size])
            assert torch.equal(part["domain"], whole["domain"][rank::world_size])

    def test_seed_and_stream_change_the_order(self):
        blocks = Blocks(TOKENS, 5)
        variants = [TokenStream(blocks, 20, *key).batch(0)["tokens"][:, 0].tolist() for key in ((0, 0), (1, 0), (0, 1))]
        assert len({tuple(variant) for variant in variants}) == 3

    @pytest.mark.parametrize("sequence_length", [0, 47])
    def test_sequence_length_that_does_not_fit_is_named(self, sequence_length):
        with pytest.raises(ValueError, match=rf"sequence_length={sequence_length} .*'b': 47"):
            Blocks(TOKENS, sequence_length)


class TestDataModule:
    def test_restored_state_goes_on_like_the_uninterrupted_run(self, folder):
        whole = list(make_data(folder).train_dataloader())
        assert len(whole) == len(make_data(folder).train_dataloader()) == 12
        loader = make_data(folder).train_dataloader()
        iterator = iter(loader)
        start = [next(iterator) for _ in range(5)]
        resumed = make_data(folder).train_dataloader()
        resumed.load_state_dict(json.loads(json.dumps(loader.state_dict())))
        assert batches_equal(start + list(resumed), whole)

    def test_second_iteration_goes_on(self, folder):
        loader = make_data(folder, num_batches=6).train_dataloader()
        assert batches_equal(list(loader) + list(loader), list(make_data(folder).train_dataloader()))

    @pytest.mark.parametrize("change", [{"seed": 4}, {"sequences_per_batch": 8}, {"domains": ["animals"]}])
    def test_state_of_another_stream_is_refused(self, folder, change):
        with pytest.raises(ValueError, match="the checkpoint's data stream is"):
            make_data(folder, **change).train_dataloader().load_state_dict(
                make_data(folder).train_dataloader().state_dict()
            )

    def test_validation_is_fixed_and_balanced(self, folder):
        data = make_data(folder)
        batches = list(data.val_dataloader())
        assert batches_equal(batches, list(data.val_dataloader()))
        assert torch.cat([batch["domain"] for batch in batches]).tolist() == [0, 1] * 5
        assert [len(batch["tokens"]) for batch in batches] == [4, 4, 2]
        most = make_data(folder, val_sequences_per_domain=10_000)._held_out_blocks.counts.min()
        assert (
            sum(len(b["tokens"]) for b in make_data(folder, val_sequences_per_domain=10_000).val_dataloader())
            == 2 * most
        )

    def test_ranks_share_validation_and_uneven_ones_are_refused(self, folder):
        class FakeTrainer:
            world_size, global_rank = 2, 1

        data = make_data(folder)
        whole = list(data.val_dataloader())
        data.trainer = FakeTrainer()
        for part, batch in zip(data.val_dataloader(), whole, strict=True):
            assert torch.equal(part["tokens"], batch["tokens"][1::2])
        FakeTrainer.world_size = 3
        with pytest.raises(ValueError, match="sequences_per_batch=4 is not divisible by 3 ranks"):
            data.train_dataloader()
        data.sequences_per_batch = 6
        with pytest.raises(ValueError, match="10 held-out sequences cannot be dealt evenly to 3 ranks"):
            data.val_dataloader()

    def test_probe_is_held_out_fixed_and_balanced(self, folder):
        data = make_data(folder)
        probe = data.probe_batch(6)
        assert torch.equal(probe, make_data(folder, seed=9).probe_batch(6))
        first = data._held_out_blocks.batch(np.array([0, data._held_out_blocks.counts[0]]))["tokens"]
        assert torch.equal(probe[:2], first)
        with pytest.raises(ValueError, match="num_sequences=5 is no multiple of 2 domains"):
            data.probe_batch(5)

    def test_fresh_batches_are_another_order_of_the_same_text(self, folder):
        data = make_data(folder)
        fresh = list(data.fresh_batches(0, 6))
        assert batches_equal(fresh[2:], list(data.fresh_batches(2, 4)))
        assert not batches_equal(fresh, list(data.train_dataloader())[:6])

    @pytest.mark.parametrize("text", ["held_out", "train"])
    def test_sampled_batches_depend_on_their_seed_alone(self, folder, text):
        class FakeTrainer:
            world_size, global_rank = 2, 1

        def sample(**changes):
            return list(make_data(folder, **changes).sampled_batches(text, 5, seed=1))

        other_rank = make_data(folder)
        other_rank.trainer = FakeTrainer()
        assert batches_equal(sample(), sample(seed=9, num_batches=2))
        assert batches_equal(sample(), list(other_rank.sampled_batches(text, 5, seed=1)))
        assert batches_equal(sample()[:2], list(make_data(folder).sampled_batches(text, 2, seed=1)))
        assert not batches_equal(sample(), list(make_data(folder).sampled_batches(text, 5, seed=2)))

    def test_sampled_held_out_text_is_all_of_it_before_any_comes_twice(self, folder):
        data = make_data(folder, sequences_per_batch=1)
        blocks = data._held_out_blocks
        drawn = torch.cat([batch["tokens"] for batch in data.sampled_batches("held_out", len(blocks), seed=0)])
        whole = blocks.batch(np.arange(len(blocks)))["tokens"]
        assert sorted(drawn.tolist()) == sorted(whole.tolist())
        assert not torch.equal(drawn, whole)

    @pytest.mark.parametrize(
        ("arguments", "named"),
        [(("web", 1, 0), "text='web'"), (("train", 0, 0), "num_batches=0"), (("train", 1, -1), "seed=-1")],
    )
    def test_a_sample_of_nothing_is_named(self, folder, arguments, named):
        with pytest.raises(ValueError, match=named):
            make_data(folder).sampled_batches(*arguments)

    def test_epochs_and_sizes(self, folder):
        data = make_data(folder, num_batches=10)
        assert data.epochs == 40 / data.num_blocks
        assert (data.vocab_size, data.domains) == (280, ("animals", "numbers"))
        assert data.fingerprint == load(folder).fingerprint

    @pytest.mark.parametrize("name", ["sequences_per_batch", "num_batches", "val_sequences_per_domain"])
    def test_count_below_one_is_named(self, folder, name):
        with pytest.raises(ValueError, match=f"{name}=0"):
            make_data(folder, **{name: 0})


class Model(L.LightningModule):
    """A step's outcome depends on every token seen, and the batches are written down."""

    def __init__(self, fail_at: int | None = None) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(280, 4)
        self.fail_at = fail_at
        self.seen: list[torch.Tensor] = []

    def training_step(self, batch, batch_idx):
        if batch_idx == self.fail_at:
            raise RuntimeError("preempted")
        self.seen.append(batch["tokens"])
        return self.table(batch["tokens"]).pow(2).mean()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)


class SaveOnException(L.Callback):
    def __init__(self, path: Path) -> None:
        self.path = path

    def on_exception(self, trainer, pl_module, exception):
        trainer.save_checkpoint(self.path)


def fit(folder: Path, where: Path, callbacks=(), ckpt_path=None, fail_at=None, data=None, **options):
    torch.manual_seed(0)
    model = Model(fail_at)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(
        accelerator="cpu",
        default_root_dir=where,
        callbacks=list(callbacks),
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        **(quiet | {"max_epochs": 1} | options),
    )
    trainer.fit(model, data or make_data(folder), ckpt_path=ckpt_path)
    return model, trainer


def check_resumed(whole: Model, resumed: Model, seen_before: int) -> None:
    assert len(whole.seen) - seen_before == len(resumed.seen)
    assert all(torch.equal(a, b) for a, b in zip(whole.seen[seen_before:], resumed.seen, strict=True))
    assert torch.equal(whole.table.weight, resumed.table.weight)


@pytest.mark.filterwarnings("ignore")
class TestLightning:
    @pytest.mark.parametrize(("accumulate", "every", "step"), [(1, 5, 5), (2, 2, 4), (1, 12, 12)])
    def test_resume_from_the_end_of_a_step(self, folder, tmp_path, accumulate, every, step):
        saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=every, save_top_k=-1)
        whole, trainer = fit(folder, tmp_path, [saver], accumulate_grad_batches=accumulate)
        assert len(whole.seen) == 12
        # plain values only: a checkpoint with the data's state loads without unpickling code
        torch.load(tmp_path / f"step={step}.ckpt", weights_only=True)
        resumed, again = fit(
            folder, tmp_path, ckpt_path=tmp_path / f"step={step}.ckpt", accumulate_grad_batches=accumulate
        )
        check_resumed(whole, resumed, step * accumulate)
        assert again.global_step == trainer.global_step == 12 // accumulate

    def test_resume_from_a_validation_in_the_middle(self, folder, tmp_path):
        saver = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1)
        whole, _ = fit(folder, tmp_path, [saver], val_check_interval=4)
        resumed, _ = fit(folder, tmp_path, ckpt_path=tmp_path / "step=4.ckpt", val_check_interval=4)
        check_resumed(whole, resumed, 4)

    def test_resume_from_a_step_that_failed(self, folder, tmp_path):
        whole, _ = fit(folder, tmp_path)
        with pytest.raises(RuntimeError, match="preempted"):
            fit(folder, tmp_path, [SaveOnException(tmp_path / "failed.ckpt")], fail_at=7)
        resumed, _ = fit(folder, tmp_path, ckpt_path=tmp_path / "failed.ckpt")
        check_resumed(whole, resumed, 7)

    def test_finished_run_can_be_lengthened(self, folder, tmp_path):
        whole, _ = fit(folder, tmp_path, data=make_data(folder, num_batches=18))
        _, short = fit(folder, tmp_path)
        short.save_checkpoint(tmp_path / "end.ckpt")
        longer = make_data(folder, num_batches=18)
        resumed, _ = fit(folder, tmp_path, ckpt_path=tmp_path / "end.ckpt", data=longer, max_epochs=-1, max_steps=18)
        check_resumed(whole, resumed, 12)
