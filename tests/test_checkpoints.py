import contextlib
import hashlib
import os
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch

import pedsleepmae
from pedsleepmae import api, checkpoints, load_model
from pedsleepmae.checkpoints import (
    CheckpointError,
    hash_patient,
    hash_patients,
    list_sums,
    other_scaling,
    publish,
    read_checkpoint,
    save_checkpoint,
)
from pedsleepmae.model import HEADS, MaskedAutoencoder

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden"
SETTINGS = {
    "patch_size": 20,
    "emb_dim": 2,
    "num_layer": 1,
    "num_head": 2,
    "decoder_emb_dim": 3,
    "decoder_num_layer": 2,
    "mask_ratio": 0.75,
    "mask_span": 4,
    "token_layout": "moment",
    "loss_on": "all",
}


def content(**other) -> dict:
    model = MaskedAutoencoder(**SETTINGS)
    model.reset_parameters(torch.Generator().manual_seed(0))
    return {
        "state_dict": model.state_dict(),
        "model": SETTINGS,
        "settings": {"model": SETTINGS, "seed": 0},
        "step": 7,
        "val_loss": 0.5,
        "split_hash": "0123456789abcdef",
        "patients_seen": hash_patients([10, 11]),
        "simulated": True,
        "data": {"n_examples": 3},
    } | other


# ------------------------------------------------------------------ ours
def test_a_checkpoint_rebuilds_its_model_without_any_setting_retyped(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, content())
    model = load_model(path)
    assert not model.training
    same = MaskedAutoencoder(**SETTINGS).eval()
    same.load_state_dict(content()["state_dict"])
    x = torch.randn(2, 16, 3840, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.reconstruct(x), same.reconstruct(x))
    of_model = model.settings
    assert (of_model.token_layout, of_model.loss_on, of_model.mask_span) == ("moment", "all", 4)
    assert model.n_keep == 48


def test_a_checkpoint_loads_without_pickle_and_says_where_it_comes_from(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, content())
    raw = torch.load(path, weights_only=True)
    assert {"state_dict", "settings", "step", "split_hash", "patients_seen"} <= set(raw)
    loaded = read_checkpoint(path)
    assert loaded.step == 7
    assert loaded.simulated is True
    assert loaded.original is False
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_load_model_is_offered_by_the_package():
    assert pedsleepmae.load_model is api.load_model
    with pytest.raises(AttributeError, match="no attribute 'load_modle'"):
        _ = pedsleepmae.load_modle


def test_patients_are_hashed_as_documented():
    assert hash_patient(42) == hashlib.sha256(b"pedsleepmae-patient:42").hexdigest()
    hashes = hash_patients([7, 42, 7])
    assert hashes == sorted({hash_patient(7), hash_patient(42)})


# ------------------------------------------------------------------ published
X = torch.randn(2, 16, 3840, generator=torch.Generator().manual_seed(0))


def published(tmp_path: Path, largest_file: int) -> Path:
    save_checkpoint(tmp_path / "checkpoint_best.pt", content(optimizer={"state": {}}))
    target = tmp_path / "ships" / "m15p8_checkpoint.pt"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "LARGEST_FILE", largest_file)
        publish(tmp_path / "checkpoint_best.pt", target)
    return target


@pytest.mark.parametrize(("largest_file", "n_files"), [(10**9, 1), (1000, 2)])
def test_a_published_checkpoint_is_the_same_model_in_bfloat16(tmp_path, largest_file, n_files):
    path = published(tmp_path, largest_file)
    assert len(list(path.parent.glob("*.pt"))) == n_files
    assert not read_checkpoint(path).resume
    rounded = {name: value.bfloat16().float() for name, value in content()["state_dict"].items()}
    same = MaskedAutoencoder(**SETTINGS).eval()
    same.load_state_dict(rounded)
    assert torch.equal(load_model(path).reconstruct(X), same.reconstruct(X))


def test_what_only_training_needs_is_kept_to_resume_and_does_not_ship(tmp_path):
    settings = SETTINGS | {"target": "both", "view_weight": 1.0}
    model = MaskedAutoencoder(**settings).eval()
    best, target = tmp_path / "checkpoint_best.pt", tmp_path / "ships" / "model.pt"
    save_checkpoint(best, content(model=settings, state_dict=model.state_dict()))
    heads = {name for name in read_checkpoint(best).state_dict if name.startswith(HEADS)}
    assert heads == {name for name in model.state_dict() if name.startswith(HEADS)} != set()
    loaded = load_model(best)
    assert loaded.band_heads is None
    assert loaded.view_head is None
    assert torch.equal(loaded.embed(X), model.embed(X))
    assert torch.equal(loaded.reconstruct(X), model.reconstruct(X))
    publish(best, target)
    shipped = read_checkpoint(target)
    assert not [name for name in shipped.state_dict if name.startswith(HEADS)]
    assert shipped.model["target"] == "both"  # how it was trained
    load_model(target)


def test_an_encoder_without_its_decoder_embeds_and_says_what_is_missing(tmp_path):
    path = published(tmp_path, 1000)
    whole = load_model(path).embed(X)
    path.with_name("m15p8_checkpoint.decoder.pt").unlink()
    model = load_model(path)
    assert torch.equal(model.embed(X), whole)
    with pytest.raises(
        ValueError, match=r"no decoder .*m15p8_checkpoint\.decoder\.pt is not there"
    ):
        model.reconstruct(X)


def test_a_decoder_file_does_not_change_the_encoder(tmp_path):
    path = published(tmp_path, 1000)
    (path.parent / "SHA256SUMS").unlink()
    before = load_model(path).embed(X)
    beside = path.with_name("m15p8_checkpoint.decoder.pt")
    save_checkpoint(
        beside, content(state_dict={n: v + 1 for n, v in content()["state_dict"].items()})
    )
    assert torch.equal(load_model(path).embed(X), before)


@pytest.mark.parametrize("name", ["m15p8_checkpoint.pt", "m15p8_checkpoint.decoder.pt"])
def test_a_published_file_that_was_changed_is_refused(tmp_path, name):
    path = published(tmp_path, 1000)
    other = content()["state_dict"] | {}
    save_checkpoint(path.with_name(name), content(state_dict=other))
    with pytest.raises(CheckpointError, match=rf"{name}: its SHA-256 is not the one"):
        load_model(path)


def test_publishing_again_changes_no_byte_and_keeps_the_lines_of_other_files(tmp_path):
    path = published(tmp_path, 1000)
    (path.parent / "probes.npz").write_bytes(b"probes")
    list_sums(path.parent / "probes.npz")
    before = {each.name: each.read_bytes() for each in path.parent.iterdir()}
    assert published(tmp_path, 1000) == path
    assert {each.name: each.read_bytes() for each in path.parent.iterdir()} == before
    assert b"probes.npz" in before["SHA256SUMS"]


def test_the_list_of_sums_is_the_one_that_sha256sum_checks(tmp_path):
    path = published(tmp_path, 1000)
    command = ["sha256sum", "--check", "--strict", checkpoints.SUMS_NAME]
    assert subprocess.run(command, cwd=path.parent, check=False).returncode == 0


# ------------------------------------------------------------------ whole or not at all
def test_a_write_that_fails_leaves_the_previous_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, content(step=1))

    def half_written(value, target):
        target.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(checkpoints.torch, "save", half_written)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(path, content(step=2))
    assert read_checkpoint(path).step == 1
    assert os.listdir(tmp_path) == ["checkpoint.pt"]


# ------------------------------------------------------------------ what cannot be used
def test_weights_of_another_shape_are_refused_in_one_sentence(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, content(model=SETTINGS | {"decoder_emb_dim": 4}))
    with pytest.raises(CheckpointError, match=r"mask_token has the shape \(1, 1, 1, 3\) there"):
        load_model(path)


def test_missing_and_unknown_weights_are_refused_by_name(tmp_path):
    path = tmp_path / "checkpoint.pt"
    weights = content()["state_dict"]
    del weights["encoder.absent_token"]
    save_checkpoint(path, content(state_dict=weights))
    with pytest.raises(CheckpointError, match=r"encoder.absent_token is not there.*0 more"):
        load_model(path)
    save_checkpoint(path, content(state_dict=content()["state_dict"] | {"extra": torch.zeros(2)}))
    with pytest.raises(CheckpointError, match=r"extra has the shape .* is unknown here"):
        load_model(path)


@pytest.mark.parametrize("length", [0, 9, 1000])
def test_a_cut_checkpoint_is_refused_by_name(tmp_path, length):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, content())
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt: not a whole checkpoint file"):
        load_model(path)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    class Malicious:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    path = tmp_path / "checkpoint.pt"
    torch.save({"state_dict": {}, "extra": Malicious()}, path)
    with pytest.raises(CheckpointError, match="does not load safely"):
        read_checkpoint(path)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"weights": 1}, "holds no state_dict"),
        ({"state_dict": {"layer.weight": torch.zeros(2)}}, "neither a checkpoint of script 2"),
        ({"state_dict": {}, "format": "pedsleepmae", "version": 99}, "version 99"),
        ({"state_dict": {}, "format": "pedsleepmae", "version": 1, "model": {"width": 3}}, "width"),
    ],
)
def test_checkpoints_of_another_kind_are_refused_with_the_reason(tmp_path, value, message):
    path = tmp_path / "checkpoint.pt"
    torch.save(value, path)
    with pytest.raises(CheckpointError, match=message):
        load_model(path)


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere\.pt: there is no such file"):
        load_model(tmp_path / "nowhere.pt")


# ------------------------------------------------------------------ the original authors'
@pytest.fixture
def original():
    if not GOLDEN.is_dir():
        pytest.skip(f"{GOLDEN} is absent: the original's checkpoint cannot be read")
    return GOLDEN / "reference_small_checkpoint.pt"


def test_an_original_checkpoint_is_recognised_and_its_sizes_inferred(original):
    model = load_model(original)
    loaded = read_checkpoint(original)
    assert loaded.original is True
    assert loaded.patients_seen is None
    assert loaded.model["emb_dim"] == 8
    assert loaded.model["num_layer"] == loaded.model["decoder_num_layer"] == 2
    assert model.settings.token_layout == "reference"
    assert model.encoder.transformer[0].attn.num_head == 4
    weights = torch.load(original, weights_only=True)["state_dict"]
    assert all(torch.equal(model.state_dict()[name], value) for name, value in weights.items())


def test_an_original_checkpoint_of_another_epoch_length_is_refused(original, tmp_path):
    raw = torch.load(original, weights_only=True)
    positions = raw["state_dict"]["encoder.pos_embedding"]
    raw["state_dict"]["encoder.pos_embedding"] = positions[:, :, :241]
    torch.save(raw, tmp_path / "short.pt")
    with pytest.raises(CheckpointError, match="240 x 8 samples a channel"):
        load_model(tmp_path / "short.pt")


@pytest.mark.parametrize(("theirs", "ours"), [("policy", "policy"), ("", "policy"), ("fitted", "")])
def test_equal_and_unknown_scalings_are_no_reason_to_warn(theirs, ours):
    assert other_scaling(theirs, ours) == ""


def test_another_scaling_is_named_with_the_remedy():
    assert "--scaling original" in other_scaling("original", "policy")


@pytest.mark.parametrize("line", ["{sum} *{name}", "{sum}  {name}", "# no sum\n{sum}  {name}"])
def test_a_wrong_sum_is_found_in_each_form_that_sha256sum_writes(tmp_path, line):
    path = tmp_path / "my model.pt"
    path.write_bytes(b"weights")
    (tmp_path / checkpoints.SUMS_NAME).write_text(line.format(sum="0" * 64, name=path.name))
    with pytest.raises(CheckpointError, match="changed or damaged"):
        checkpoints.check_sum(path)


# ------------------------------------------------------------------ damaged files
NAN = torch.full_like(content()["state_dict"]["encoder.cls_token"], torch.nan)
TOKEN = "encoder.cls_token"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"step": "seven"}, "step has the wrong type, str"),
        ({"patients_seen": 3}, "patients_seen has the wrong type, int"),
        ({"patients_seen": ["10000"]}, "patients_seen"),
        ({"model": [1]}, "model has the wrong type, list"),
        ({"settings": None}, "settings has the wrong type, NoneType"),
        ({"simulated": "no"}, "simulated has the wrong type"),
        ({"scaling": 5}, "scaling has the wrong type"),
        ({"decoder": "../other.pt"}, "decoder is no name"),
        ({"decoder": ".."}, "decoder is no name"),
        ({"version": "x"}, "version 'x'"),
        ({"state_dict": {TOKEN: None}}, "no weights by name"),
        ({"state_dict": {3: torch.zeros(3)}}, "no weights by name"),
        ({"state_dict": {TOKEN: torch.zeros(3, dtype=torch.int64)}}, "no weights by name"),
        ({"state_dict": {TOKEN: torch.zeros(3).to_sparse()}}, "no weights by name"),
        ({"state_dict": {TOKEN: torch.zeros(1).expand(10**12)}}, "more weights than it holds"),
        ({"state_dict": content()["state_dict"] | {TOKEN: NAN}}, f"{TOKEN} .* not finite"),
        ({"model": SETTINGS | {"num_layer": 10**9}}, "1000000000 layers"),
        ({"model": SETTINGS | {"emb_dim": 10**6}}, "another shape"),
        ({"model": SETTINGS | {"emb_dim": 10**9}}, "do not make a model"),
        ({"model": SETTINGS | {"decoder_emb_dim": 2**62}}, "model"),
        ({"model": SETTINGS | {"emb_dim": "x"}}, "emb_dim has the wrong type"),
        ({"model": SETTINGS | {"token_layout": ["moment"]}}, "token_layout has the wrong type"),
        ({"model": SETTINGS | {"extra": 3}}, "extra"),
    ],
)
def test_a_value_of_another_kind_is_told_by_its_name(tmp_path, change, reason):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, content(**change))
    with pytest.raises(CheckpointError, match=reason):
        load_model(path)


def test_an_archive_that_would_unpack_to_more_than_the_file_is_not_unpacked(tmp_path):
    path = tmp_path / "checkpoint.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("checkpoint/data.pkl", bytes(10_000))
    with pytest.raises(CheckpointError, match="compressed"):
        read_checkpoint(path)


@pytest.mark.parametrize("place", range(0, 1000, 50))
def test_a_damaged_byte_is_found_or_does_no_harm(tmp_path, place):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, content())
    raw = bytearray(path.read_bytes())
    at = raw.index(b"data.pkl") + place
    raw[at] ^= 0xFF
    path.write_bytes(raw)
    with contextlib.suppress(CheckpointError):
        model = load_model(path)
        assert all(torch.isfinite(weight).all() for weight in model.state_dict().values())


def test_two_files_that_name_each_other_as_decoder_are_not_followed_for_ever(tmp_path):
    for name, other in (("a.pt", "b.pt"), ("b.pt", "a.pt")):
        save_checkpoint(tmp_path / name, content(decoder=other))
    assert load_model(tmp_path / "a.pt").decoder is not None


def test_a_sum_in_capital_letters_counts_too(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, content())
    sums = path.with_name("SHA256SUMS")
    digest = hashlib.sha256(path.read_bytes()).hexdigest().upper()
    sums.write_text(f"{digest}  checkpoint.pt\n")
    assert read_checkpoint(path).step == 7
    sums.write_text(f"{'A' * 64}  checkpoint.pt\n")
    with pytest.raises(CheckpointError, match="SHA-256"):
        read_checkpoint(path)
