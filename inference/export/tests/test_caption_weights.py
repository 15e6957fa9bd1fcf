"""Where a captioner's weights may come from, under which names, and what is refused unopened."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hawkeye_export import caption_weights, captioner
from hawkeye_export.caption_tokenizer import seeded_tokenizer
from hawkeye_export.caption_weights import PUBLISHED_SHA256, locate, native_name, read, seeded
from hawkeye_export.errors import ExportError, FetchError, UntrustedWeightsError
from hawkeye_export.florence2 import SMALL, shapes

CONFIG = {
    "vision_config": {
        "depths": SMALL.depths, "patch_size": SMALL.patch_sizes, "patch_stride": SMALL.strides, "patch_padding": SMALL.paddings,
        "patch_prenorm": SMALL.prenorm, "dim_embed": SMALL.dims, "num_heads": SMALL.vision_heads, "num_groups": SMALL.groups,
        "window_size": SMALL.window, "projection_dim": SMALL.width,
    },
    "text_config": {
        "vocab_size": SMALL.vocabulary, "d_model": SMALL.width, "encoder_layers": 2, "decoder_layers": 2,
        "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128,
    },
}  # fmt: skip


def microsoft_name(name: str) -> str:
    """A weight's name in Microsoft's own code, which OmniParser's file has. Written down apart from `native_name`."""
    head, _, rest = name.partition(".")
    if head == "language_model":
        return f"language_model.model.{rest}"
    if head == "multi_modal_projector":
        if rest == "image_projection.weight":
            return "image_projection"
        return rest.replace("image_position_embed", "image_pos_embed")
    if rest.startswith("convs."):
        return name.replace(".conv.", ".proj.")
    attention = "window_attn" if ".spatial_block." in name else "channel_attn"
    for ours, theirs in (
        (".conv1.", ".conv1.fn.dw."), (".conv2.", ".conv2.fn.dw."), (".norm1.", f".{attention}.norm."), (".norm2.", ".ffn.norm."),
        (".qkv.", ".fn.qkv."), (".proj.", ".fn.proj."), (".ffn.fc1.", ".ffn.fn.net.fc1."), (".ffn.fc2.", ".ffn.fn.net.fc2."),
    ):  # fmt: skip
        name = name.replace(ours, theirs)
    return name


def microsoft_tensors() -> dict[str, torch.Tensor]:
    tensors = {microsoft_name(name): tensor.contiguous() for name, tensor in seeded(SMALL, 0).items()}
    tensors["image_projection"] = tensors["image_projection"].T.contiguous()
    tensors["language_model.lm_head.weight"] = tensors["language_model.model.shared.weight"].clone()
    tensors["language_model.final_logits_bias"] = torch.zeros(1, SMALL.vocabulary)
    return tensors


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "icon_caption"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    (folder / "tokenizer.json").write_text(seeded_tokenizer(SMALL.vocabulary, 0), encoding="utf-8")
    save_file(microsoft_tensors(), folder / "model.safetensors")
    return folder


def assert_is_seeded(found: dict[str, torch.Tensor]) -> None:
    expected = seeded(SMALL, 0)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_the_names_of_the_published_file() -> None:
    """Some of them spelled out, from Microsoft's modeling_florence2.py."""
    block = "vision_tower.blocks.2.8"
    for theirs, ours in {
        "vision_tower.convs.0.proj.weight": "vision_tower.convs.0.conv.weight",
        f"{block}.spatial_block.window_attn.fn.qkv.bias": f"{block}.spatial_block.window_attn.qkv.bias",
        f"{block}.channel_block.channel_attn.norm.weight": f"{block}.channel_block.norm1.weight",
        f"{block}.channel_block.ffn.fn.net.fc2.weight": f"{block}.channel_block.ffn.fc2.weight",
        "image_pos_embed.row_embeddings.weight": "multi_modal_projector.image_position_embed.row_embeddings.weight",
        "language_model.model.encoder.embed_positions.weight": "language_model.encoder.embed_positions.weight",
        "model.language_model.decoder.layers.0.fc1.bias": "language_model.decoder.layers.0.fc1.bias",
        "language_model.model.decoder.embed_tokens.weight": None,
        "vision_tower.norms.weight": None,
    }.items():
        assert native_name(theirs) == ours
    for name in shapes(SMALL):
        assert native_name(microsoft_name(name)) == name
        assert native_name(f"model.{name}") == name


def test_a_folder_in_microsofts_spelling(checkpoint: Path) -> None:
    origin = locate(str(checkpoint))
    assert not origin.test_only and not origin.published and origin.licence == "LicenseRef-unknown"
    config, weights, bias = read(origin)
    assert config == SMALL
    assert bias is not None and not bias.any()
    assert_is_seeded(weights)


def test_a_folder_that_hugging_face_wrote(checkpoint: Path) -> None:
    tensors = {f"model.{name}": tensor.contiguous() for name, tensor in seeded(SMALL, 0).items()}
    # The table may go by any of its names.
    tensors["lm_head.weight"] = tensors.pop("model.language_model.shared.weight")
    save_file({name: tensor.to(torch.float32) for name, tensor in tensors.items()}, checkpoint / "model.safetensors")
    assert_is_seeded(read(locate(str(checkpoint)))[1])


def test_a_folder_gives_the_same_modules_as_its_weights_without_files(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(captioner, "REFERENCE_CROPS", 2)
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir()
    theirs.mkdir()
    a = captioner.export(ours, captioner.Request(locate(str(checkpoint))))
    b = captioner.export(theirs, captioner.Request(locate("random")))
    assert a["files"] == b["files"] and a["reference"] == b["reference"] and a["tokenizer"] == b["tokenizer"]
    assert a["source"]["sha256"] != PUBLISHED_SHA256 and "sha256" not in b["source"]
    assert captioner.identity_of(a) == captioner.Request(locate(str(checkpoint))).identity()


def test_the_logits_bias_is_kept(checkpoint: Path) -> None:
    tensors = microsoft_tensors()
    tensors["language_model.final_logits_bias"][0, 7] = 3.0
    save_file(tensors, checkpoint / "model.safetensors")
    bias = read(locate(str(checkpoint)))[2]
    assert bias is not None and bias[7] == 3.0


class Poison:
    """Creates a file when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self):
        return Path.touch, (self.witness,)


def test_pickles_are_refused_unopened(checkpoint: Path, tmp_path: Path) -> None:
    witness, poison = tmp_path / "executed", pickle.dumps(Poison(tmp_path / "executed"))
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "pytorch_model.bin").write_bytes(poison)
    with pytest.raises(UntrustedWeightsError, match="pickle"):
        locate(str(checkpoint))
    (checkpoint / "model.safetensors").write_bytes(poison)
    with pytest.raises(ExportError, match="no safetensors file"):
        read(locate(str(checkpoint)))
    assert not witness.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("image_projection"), "1 weights are missing"),
        (lambda tensors: tensors.update(extra=torch.zeros(1)), "1 are not known"),
        (lambda tensors: tensors.update({"image_proj_norm.bias": torch.zeros(3)}), r"has the shape \(3,\)"),
    ],
)
def test_a_file_that_is_not_the_network_of_its_config(change, message: str, checkpoint: Path) -> None:
    tensors = microsoft_tensors()
    change(tensors)
    save_file(tensors, checkpoint / "model.safetensors")
    with pytest.raises(ExportError, match=message):
        read(locate(str(checkpoint)))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Stands in for the download: repositories are folders here."""
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    asked: list[str] = []

    def download(repository: str, name: str, subfolder: str | None = None) -> str:
        path = tmp_path / "hub" / repository / (subfolder or "") / name
        asked.append(str(path.relative_to(tmp_path / "hub")))
        if not (tmp_path / "hub").exists():
            raise LocalEntryNotFoundError("offline")
        if not path.is_file():
            raise EntryNotFoundError("404")
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return asked


def test_a_repository_of_the_hub(hub: list[str], checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "hub" / "someone" / "captions" / "v2"
    target.parent.mkdir(parents=True)
    checkpoint.rename(target)
    origin = locate("someone/captions/v2")
    assert origin.source()["path"] == "someone/captions/v2/model.safetensors"
    assert hub == [f"someone/captions/v2/{name}" for name in ("model.safetensors", "config.json", "tokenizer.json")]
    assert_is_seeded(read(origin)[1])
    with pytest.raises(FetchError, match="someone/captions has no model.safetensors"):
        locate("someone/captions")


@pytest.mark.parametrize("name", ["omniparser-v2", "microsoft/OmniParser-v2.0", "microsoft/OmniParser-v2.0/icon_caption"])
def test_the_published_repository_must_hold_the_published_file(name: str, hub: list[str], checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "hub" / "microsoft" / "OmniParser-v2.0" / "icon_caption"
    target.parent.mkdir(parents=True)
    checkpoint.rename(target)
    with pytest.raises(UntrustedWeightsError, match=PUBLISHED_SHA256):
        locate(name)
    assert hub[0] == "microsoft/OmniParser-v2.0/icon_caption/model.safetensors"


def test_the_published_file_is_known_by_its_sum_and_takes_the_base_models_tokenizer(
    hub: list[str], checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "hub" / "microsoft" / "Florence-2-base"
    base.mkdir(parents=True)
    (checkpoint / "tokenizer.json").rename(base / "tokenizer.json")
    monkeypatch.setattr(caption_weights, "PUBLISHED_SHA256", caption_weights.sha256_of_file(checkpoint / "model.safetensors"))
    origin = locate(str(checkpoint))
    assert origin.published and origin.licence == "MIT"
    assert origin.tokenizer == base / "tokenizer.json"


def test_what_is_not_there_is_a_plain_error(hub: list[str], checkpoint: Path, tmp_path: Path) -> None:
    for name, message in {
        "omniparser-v2": "cannot reach Hugging Face for model.safetensors of microsoft/OmniParser-v2.0; download",
        "no-such-folder": "neither a folder nor",
        str(tmp_path / "none"): "neither a folder nor",
    }.items():
        with pytest.raises(FetchError, match=message):
            locate(name)
    (checkpoint / "tokenizer.json").unlink()
    with pytest.raises(FetchError, match="give your own copy of tokenizer.json"):
        locate(str(checkpoint))
    (checkpoint / "config.json").unlink()
    with pytest.raises(FetchError, match="has no config.json"):
        locate(str(checkpoint))
    with pytest.raises(FetchError, match="tokenizer of their own"):
        locate("random", tokenizer="x")


def test_endless_weights_differ_in_the_end_tokens_bias_only() -> None:
    config, weights, bias = read(caption_weights.Origin(title="endless", test_config=SMALL, endless=True))
    assert config == SMALL and all(torch.equal(weights[name], tensor) for name, tensor in seeded(SMALL, 0).items())
    assert bias is not None and bias.shape == (SMALL.vocabulary,) and bias.nonzero().flatten().tolist() == [2]
    assert locate(caption_weights.ENDLESS).endless and not locate("random-base").endless
