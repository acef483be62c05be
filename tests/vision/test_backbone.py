"""Features, the subset S, and the suffix against the whole model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from vpretrain.system.errors import UserError
from vpretrain.vision.backbone import Backbone, EncoderSuffix, aligned_parameters, frozen
from vpretrain.vision.ijepa.encoder import PatchEncoder
from vpretrain.vision.loading import load_model, new_model

TINY: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
    "initializer_range": 0.2,
}
KINDS: dict[str, dict[str, Any]] = {
    "dinov3_vit": {**TINY, "num_register_tokens": 2},
    "dinov2": {k: v for k, v in TINY.items() if k != "intermediate_size"} | {"mlp_ratio": 2},
    "dinov2_with_registers": {k: v for k, v in TINY.items() if k != "intermediate_size"}
    | {"num_register_tokens": 2},
    "vit": TINY,
    "ijepa": TINY,
}
PREFIX_TOKENS = {"dinov3_vit": 3, "dinov2": 1, "dinov2_with_registers": 3, "vit": 1, "ijepa": 0}


def tiny(
    kind: str = "dinov3_vit", dtype: torch.dtype = torch.float64, attention: str = "sdpa"
) -> Any:
    torch.manual_seed(0)
    return new_model({"model_type": kind, **KINDS[kind]}, dtype=dtype, attention=attention)


def images(*size: int, count: int = 2, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(1), dtype=dtype)


@pytest.mark.parametrize("kind", KINDS)
def test_patches_lie_where_their_pixels_are(kind: str) -> None:
    """A change of one patch's pixels moves that patch's feature most: rows, columns and prefix are
    told apart.
    """
    backbone = Backbone(tiny(kind).eval())
    assert (backbone.width, backbone.patch_size, backbone.prefix_tokens) == (
        32,
        8,
        PREFIX_TOKENS[kind],
    )
    plain = images(16, 24, count=1)
    for row, column in [(0, 2), (1, 0), (1, 1)]:
        changed = plain.clone()
        changed[..., row * 8 : row * 8 + 8, column * 8 : column * 8 + 8] += 2 * images(
            8, 8, count=1
        )
        with torch.no_grad():
            before, after = backbone.features(plain), backbone.features(changed)
        assert before.patches.shape == (1, 32, 2, 3) and before.pooled.shape == (1, 32)
        distance = (after.patches - before.patches).norm(dim=1)[0]
        assert distance.argmax() == row * 3 + column


def test_pooled_feature_is_cls_or_the_mean_of_patches() -> None:
    with torch.no_grad():
        model = tiny("dinov2").eval()
        assert torch.equal(
            Backbone(model).features(images(32, 32)).pooled,
            model(images(32, 32)).last_hidden_state[:, 0],
        )
        result = Backbone(tiny("ijepa").eval()).features(images(32, 32))
        assert torch.allclose(result.pooled, result.patches.mean(dim=(2, 3)))


def test_features_of_several_blocks_end_with_the_last_one() -> None:
    model = tiny("dinov2").eval()
    backbone = Backbone(model)
    with torch.no_grad():
        two, one = backbone.features(images(32, 32), blocks=2), backbone.features(images(32, 32))
        states = model(images(32, 32), output_hidden_states=True).hidden_states
        earlier = backbone.split(model.layernorm(states[-2]), (4, 4))
    assert two.patches.shape == (2, 64, 4, 4) and two.pooled.shape == (2, 64)
    assert torch.equal(two.patches[:, 32:], one.patches) and torch.equal(
        two.pooled[:, :32], earlier.pooled
    )
    with pytest.raises(UserError, match="so many blocks"):
        backbone.features(images(32, 32), blocks=4)


def test_images_that_patches_do_not_tile_are_refused() -> None:
    with pytest.raises(UserError, match="30 x 32"):
        Backbone(tiny()).features(images(30, 32))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "aligned", [{"blocks": 1}, {"blocks": 2}, {"blocks": "all"}, {"patterns": ["*norm.bias"]}]
)
def test_the_suffix_is_the_model_and_depends_on_s_alone(kind: str, aligned: dict[str, Any]) -> None:
    """Same features as the whole model at S, the same change of them with S, and on crops of
    another size too.
    """
    model = tiny(kind).eval()
    backbone = Backbone(model)
    names = aligned_parameters(
        backbone, blocks=aligned.get("blocks", 1), patterns=aligned.get("patterns", [])
    )
    suffix = EncoderSuffix(backbone, names)
    for size in [(32, 32), (16, 24)]:
        entry = suffix.enter(images(*size))
        moved = {name: p.detach() + 0.1 * torch.randn_like(p) for name, p in names.items()}
        with torch.no_grad():
            assert torch.allclose(
                suffix.features(entry, dict(names)), backbone.tokens(images(*size)), atol=1e-6
            )
            here = {name: p.clone() for name, p in names.items()}
            suffixed = suffix.features(entry, moved)
            for name, parameter in names.items():
                parameter.copy_(moved[name])
            assert torch.allclose(suffixed, backbone.tokens(images(*size)), atol=1e-6)
            assert not torch.allclose(suffixed, suffix.features(entry, here), atol=1e-3)
            for name, parameter in names.items():
                parameter.copy_(here[name])


def test_entering_sends_gradients_to_the_pixels_alone_and_restores_the_model() -> None:
    model = tiny()  # training mode: positions would be drawn at random
    model.embeddings.cls_token.requires_grad_(False)
    backbone = Backbone(model)
    suffix = EncoderSuffix(backbone, aligned_parameters(backbone, blocks=1, patterns=[]))
    pixels = images(32, 32).requires_grad_()
    state = torch.get_rng_state()
    entry = suffix.enter(pixels)
    assert torch.equal(torch.get_rng_state(), state) and all(
        module.training for module in model.modules()
    )
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == [
        "embeddings.cls_token"
    ]
    entry.hidden.square().sum().backward()
    assert pixels.grad is not None and pixels.grad.abs().sum() > 0
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(entry.hidden, suffix.enter(images(32, 32)).hidden)


def test_last_blocks_are_the_last_blocks_and_the_final_norm() -> None:
    backbone = Backbone(tiny())
    names = aligned_parameters(backbone, blocks=1, patterns=[])
    assert {name.rsplit(".", 1)[0] for name in names if "layer." not in name} == {"norm"}
    assert all("layer.2." in name for name in names if not name.startswith("norm."))
    everything = aligned_parameters(backbone, blocks="all", patterns=[])
    assert "embeddings.cls_token" in everything
    assert (
        "embeddings.mask_token" not in everything
    )  # the features do not depend on it, so it has no gradient
    assert not any(
        "pooler" in name
        for name in aligned_parameters(Backbone(tiny("vit")), blocks="all", patterns=[])
    )
    assert set(aligned_parameters(backbone, blocks=1, patterns=["*.norm2.*"])) == {
        f"model.layer.{i}.norm2.{kind}" for i in range(3) for kind in ("weight", "bias")
    }


@pytest.mark.parametrize(
    ("blocks", "patterns", "key"),
    [
        (4, [], "learner.aligned_blocks"),
        (0, [], "learner.aligned_blocks"),
        (1, ["*lora*"], "learner.aligned_patterns"),
    ],
)
def test_an_empty_subset_is_refused(blocks: int, patterns: list[str], key: str) -> None:
    with pytest.raises(UserError) as caught:
        aligned_parameters(Backbone(tiny()), blocks=blocks, patterns=patterns)
    assert caught.value.problems[0].where == key


def test_a_subset_that_does_not_train_is_refused() -> None:
    backbone = Backbone(tiny())
    with (
        frozen(backbone.model.parameters()),
        pytest.raises(UserError, match="no gradient to compare"),
    ):
        aligned_parameters(backbone, blocks=1, patterns=[])


def test_models_that_are_not_understood_are_refused() -> None:
    class Doubled(nn.Module):
        """A final norm that is not the end of the features."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = tiny("dinov2")
            self.config, self.encoder, self.layernorm = (
                self.inner.config,
                self.inner.encoder,
                self.inner.layernorm,
            )
            del self.inner.encoder, self.inner.layernorm

        def forward(self, pixels: torch.Tensor) -> Any:
            self.inner.__dict__ |= {"encoder": self.encoder, "layernorm": self.layernorm}
            out = self.inner(pixels)
            out.last_hidden_state = out.last_hidden_state * 2
            return out

    with pytest.raises(UserError, match="does more than"):
        Backbone(Doubled())
    with pytest.raises(UserError, match="one list of blocks"):
        Backbone(
            new_model(
                {"model_type": "bert", "num_hidden_layers": 1, "hidden_size": 12, "vocab_size": 9},
                dtype=torch.float32,
                attention="eager",
            )
        )


@pytest.mark.parametrize(
    ("model_type", "taken_apart"), [("dinov3_vit", Backbone), ("vit", PatchEncoder)]
)
def test_rounding_is_not_taken_for_another_layout(
    model_type: str, taken_apart: type[Backbone]
) -> None:
    """Over 12 blocks bfloat16 differs from float32 by more than the check of the layout allows."""
    sizes = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6}
    config = KINDS[model_type] | sizes | {"model_type": model_type, "initializer_range": 0.1}
    torch.manual_seed(0)
    model = new_model(config, dtype=torch.float32, attention="sdpa").eval()
    backbone = taken_apart(model, autocast=torch.bfloat16)
    whole = backbone.tokens(backbone.small_images())
    with torch.no_grad():
        wide = model(backbone.small_images(), **backbone.options).last_hidden_state
    assert not torch.allclose(whole, wide, atol=2e-2, rtol=2e-2), "products are not narrowed"


def test_a_narrow_model_is_run_again_in_float32() -> None:
    model = tiny(dtype=torch.bfloat16).eval()
    backbone = Backbone(model)
    names = aligned_parameters(backbone, blocks=1, patterns=[])
    suffix = EncoderSuffix(backbone, names)
    pixels = images(32, 32, dtype=torch.float32)
    tokens = suffix.features(
        suffix.enter(pixels), {name: p.detach().float() for name, p in names.items()}
    )
    assert tokens.dtype == torch.float32
    assert torch.allclose(tokens, backbone.tokens(pixels).float(), atol=0.1)
    assert (
        model.rope_embeddings.inv_freq.dtype == torch.float32
    )  # rounded frequencies would be another model


def test_random_weights_are_the_same_in_every_dtype() -> None:
    wide, narrow = tiny(dtype=torch.float64).state_dict(), tiny(dtype=torch.bfloat16).state_dict()
    assert all(torch.equal(wide[name].bfloat16(), value) for name, value in narrow.items())


def test_a_saved_model_loads_and_a_broken_one_says_why(tmp_path: Path) -> None:
    model = tiny(dtype=torch.float32)
    model.save_pretrained(tmp_path / "good")
    loaded = load_model(str(tmp_path / "good"), dtype=torch.float32, attention="eager")
    assert loaded.training and loaded.config._attn_implementation == "eager"
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True)
    )
    with pytest.raises(UserError, match="no such folder"):
        load_model(str(tmp_path / "missing"), dtype=torch.float32, attention="sdpa")
    config = tmp_path / "good" / "config.json"
    config.write_text(
        config.read_text().replace('"num_hidden_layers": 3', '"num_hidden_layers": 4')
    )
    with pytest.raises(UserError, match="not in its weights"):
        load_model(str(tmp_path / "good"), dtype=torch.float32, attention="sdpa")


@pytest.mark.parametrize(
    ("config", "where", "what"),
    [
        ({"model_type": "dinov9"}, "learner.config.model_type", "no vision model of this type"),
        ({}, "learner.config.model_type", "add this key"),
        (
            {"model_type": "dinov2", "hidden_sizes": 32},
            "learner.config.hidden_sizes",
            "did you mean",
        ),
        ({"model_type": "vit", "hidden_size": "wide"}, "learner.config", "makes no vision model"),
    ],
)
def test_a_wrong_configuration_is_named(config: dict[str, Any], where: str, what: str) -> None:
    with pytest.raises(UserError, match=what) as caught:
        new_model(config, dtype=torch.float32, attention="sdpa")
    assert caught.value.problems[0].where == where
