"""Adapters: what they leave as it is, what they add, and their file."""

import pickle

import pytest
import torch
from small_probes import MODEL, save_model

from pedsleepmae import adapters
from pedsleepmae.adapters import Adapter, LoraLinear, add_adapters, load_adapter, save_adapter
from pedsleepmae.api import load_model
from pedsleepmae.checkpoints import CheckpointError, hash_encoder, read_checkpoint
from pedsleepmae.model import MaskedAutoencoder

POOLING = "time_mean+time_std+class"


def random_examples(n: int = 3) -> torch.Tensor:
    return torch.randn(n, 16, 3840, generator=torch.Generator().manual_seed(1))


def trained(model: MaskedAutoencoder, seed: int = 5) -> MaskedAutoencoder:
    """A model whose adapters hold what training might leave: no zeros."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith((".up", ".down")):
                weight.copy_(torch.randn(weight.shape, generator=generator))
    return model


def adapted(path, rank: int = 3, alpha: float = 2.0) -> tuple[MaskedAutoencoder, Adapter]:
    """A model with trained adapters on a checkpoint, and the same as a file would hold it."""
    checkpoint = read_checkpoint(path)
    model = trained(add_adapters(checkpoint.build_model(), rank, alpha))
    sha256 = hash_encoder(checkpoint.build_model())
    return model, Adapter(sha256, rank, alpha, adapters.adapter_weights(model))


@pytest.fixture
def checkpoint_path(tmp_path):
    return save_model(tmp_path / "model.pt", [1, 2])


# ------------------------------------------------------------------ the layers
def test_an_adapter_adds_its_product_times_alpha_over_rank():
    linear = torch.nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.0, 2.0]]))
        layer = LoraLinear(linear, rank=2, alpha=4.0)
        layer.down.copy_(torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
        layer.up.copy_(torch.tensor([[3.0, 5.0]]))
        # W x = 1*7 + 2*11 = 29; down x = (7, 18); up = 3*7 + 5*18 = 111; 4 / 2 * 111 = 222
        assert layer(torch.tensor([[7.0, 11.0]])).item() == 29 + 222


def test_with_alpha_0_the_embedding_is_the_frozen_one_bit_for_bit(checkpoint_path):
    frozen = read_checkpoint(checkpoint_path).build_model()
    model, _ = adapted(checkpoint_path, alpha=0.0)
    x_BCT = random_examples()
    assert torch.equal(model.embed(x_BCT, POOLING), frozen.embed(x_BCT, POOLING))


def test_a_fresh_adapter_changes_no_bit(checkpoint_path):
    frozen = read_checkpoint(checkpoint_path).build_model()
    model = add_adapters(read_checkpoint(checkpoint_path).build_model(), 3, 2.0)
    x_BCT = random_examples()
    assert torch.equal(model.embed(x_BCT, POOLING), frozen.embed(x_BCT, POOLING))


def test_adapters_stand_on_attention_and_mlp_of_every_block_and_nothing_else_is_trained():
    model = add_adapters(MaskedAutoencoder(**MODEL | {"num_layer": 2}), 1, 1.0)
    layers = [n for n, m in model.encoder.named_modules() if isinstance(m, LoraLinear)]
    wanted = ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]
    assert layers == [f"transformer.{i}.{place}" for i in range(2) for place in wanted]
    named = {n for n, p in model.named_parameters() if p.requires_grad}
    assert named == {f"encoder.{n}.{which}" for n in layers for which in ("up", "down")}


# ------------------------------------------------------------------ merged
def test_merged_equals_unmerged(checkpoint_path):
    model, adapter = adapted(checkpoint_path)
    merged = adapters.merge(read_checkpoint(checkpoint_path), adapter).build_model()
    x_BCT = random_examples()
    away, there = (m.embed(x_BCT, POOLING) for m in (merged, model))
    assert (away - there).abs().max() < 1e-5
    frozen = read_checkpoint(checkpoint_path).build_model().embed(x_BCT, POOLING)
    assert (away - frozen).abs().max() > 1e-2  # the adapter does something


def test_load_model_takes_an_adapter_by_its_file(checkpoint_path, tmp_path):
    _, adapter = adapted(checkpoint_path)
    save_adapter(tmp_path / "adapter.pt", adapter)
    model = load_model(checkpoint_path, adapter=tmp_path / "adapter.pt")
    merged = adapters.merge(read_checkpoint(checkpoint_path), adapter).build_model()
    assert hash_encoder(model) == hash_encoder(merged)


def test_a_merged_checkpoint_is_another_one_by_its_hash(checkpoint_path):
    checkpoint = read_checkpoint(checkpoint_path)
    _, adapter = adapted(checkpoint_path)
    _, other = adapted(checkpoint_path, alpha=1.0)
    hashes = {c.sha256 for c in (adapters.merge(checkpoint, a) for a in (adapter, other))}
    assert len(hashes | {checkpoint.sha256}) == 3


# ------------------------------------------------------------------ the file
def test_an_adapter_comes_back_from_its_file_to_the_last_bit(checkpoint_path, tmp_path):
    _, adapter = adapted(checkpoint_path)
    save_adapter(tmp_path / "adapter.pt", adapter)
    found = load_adapter(tmp_path / "adapter.pt")
    assert (found.rank, found.alpha, found.encoder_sha256) == (3, 2.0, adapter.encoder_sha256)
    assert found.state_dict.keys() == adapter.state_dict.keys()
    assert all(torch.equal(found.state_dict[n], w) for n, w in adapter.state_dict.items())
    assert found.sha256 == adapter.sha256


def test_the_file_holds_tensors_and_plain_values_alone(checkpoint_path, tmp_path):
    _, adapter = adapted(checkpoint_path)
    save_adapter(tmp_path / "adapter.pt", adapter)
    content = torch.load(tmp_path / "adapter.pt", weights_only=True)
    assert content["encoder_sha256"] == hash_encoder(read_checkpoint(checkpoint_path).build_model())
    plain = {name: value for name, value in content.items() if name != "state_dict"}
    assert all(isinstance(value, (str, int, float)) for value in plain.values())


def test_an_adapter_of_another_encoder_is_refused(checkpoint_path, tmp_path):
    _, adapter = adapted(checkpoint_path)
    other = read_checkpoint(save_model(tmp_path / "other.pt", [1, 2], seed=7))
    with pytest.raises(CheckpointError, match="was trained on another encoder"):
        adapters.merge(other, adapter)


def with_change(adapter: Adapter, path, **changes):
    content = {
        "format": adapters.FORMAT,
        "version": adapters.VERSION,
        "encoder_sha256": adapter.encoder_sha256,
        "rank": adapter.rank,
        "alpha": adapter.alpha,
        "state_dict": dict(adapter.state_dict),
    }
    torch.save(content | changes, path)
    return path


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": "pedsleepmae"}, "is no adapter of version 1"),
        ({"version": 2}, "is no adapter of version 1"),
        ({"rank": 0}, "out of all bounds"),
        ({"rank": "three"}, "rank has the wrong type"),
        ({"alpha": float("nan")}, "out of all bounds"),
        ({"encoder_sha256": None}, "encoder_sha256 has the wrong type"),
        ({"state_dict": {"x": torch.tensor([float("inf")])}}, "not finite"),
        ({"state_dict": {"x": "no tensor"}}, "no weights by name"),
        ({"state_dict": None}, "holds no state_dict"),
    ],
)
def test_a_file_that_is_no_adapter_is_named(checkpoint_path, tmp_path, changes, words):
    path = with_change(adapted(checkpoint_path)[1], tmp_path / "a.pt", **changes)
    with pytest.raises(CheckpointError, match=f"a.pt: .*{words}"):
        load_adapter(path)


def test_a_pickle_is_not_unpacked(tmp_path):
    (tmp_path / "a.pt").write_bytes(pickle.dumps({"state_dict": {}}))
    with pytest.raises(CheckpointError, match="not a whole checkpoint file"):
        load_adapter(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "change",
    [
        {"decoder.head.up": torch.ones(2, 3)},  # no layer of a block
        {"encoder.transformer.0.attn.qkv.up": torch.ones(2, 3)},  # too few rows
        {"encoder.transformer.0.attn.qkv.down": torch.ones(3)},  # no matrix
    ],
)
def test_matrices_that_fit_no_layer_are_refused_before_they_are_multiplied(checkpoint_path, change):
    _, adapter = adapted(checkpoint_path)
    adapter.state_dict.update(change)
    with pytest.raises(CheckpointError, match="does not fit a layer of"):
        adapters.merge(read_checkpoint(checkpoint_path), adapter)
