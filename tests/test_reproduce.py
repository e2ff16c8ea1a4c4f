"""The paper's tables on miniature trees of MVTec and VisA, with tiny weights in the real formats: what is found and refused
before anything starts, runs, interruption and resuming, tables."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import layouts
import numpy as np
import pytest
from safetensors.numpy import save_file

from cdad import PROTOCOLS, _core, preset, protocol
from cdad.autoencoder import Autoencoder
from cdad.cli import main
from cdad.config import PAPER_RECIPE
from cdad.data import write_dataset
from cdad.protocols import MVTEC_CLASSES, VISA_CLASSES
from cdad.reproduce import TABLES, _Pace, _trained, describe, duration, prepare
from cdad.results import read_json

TINY = {
    "image_size": 32,
    "autoencoder.kind": "vae", "autoencoder.channels": 32, "autoencoder.ch_mult": [1, 1, 1, 1],
    "autoencoder.num_res_blocks": 1, "autoencoder.latent_channels": 4, "autoencoder.shift_scale": 0.18215,
    "unet.model_channels": 16, "unet.norm_groups": 4, "unet.context_dim": 8, "unet.context_length": 7,
    "text.vocab_size": 11, "text.n_layers": 2, "text.num_heads": 2, "text.dim_feedforward": 32,
    "amn.n_layers": 1, "amn.dim_feedforward": 16, "amn.hidden": [8, 8, 8, 8, 8, 8, 8],
    "training.epochs": 1, "training.increment_epochs": 2, "training.batch_size": 4,
    "diffusion.steps": 2, "continual.images": 1, "scoring.backbone": "resnet18", "scoring.calibration_images": 1,
    "scoring.distance": "euclidean",
}  # fmt: skip


def arguments(*more, **changes):
    """Of a command: the tiny model, and ``changes`` of it, underscores for points after the section."""
    keys = TINY | {key.replace("_", ".", 1): value for key, value in changes.items()}
    return ["--preset", "tiny", "--quiet", *more, *(f"--set={key}={json.dumps(value)}" for key, value in keys.items())]


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """A folder with both data sets: MVTec in its layout, and VisA in its own, with the published split's file."""
    root = tmp_path_factory.mktemp("trees")
    write_dataset(root / "products", classes=["gear", "cloth"], size=32, n_train=3, n_good=1, n_defect=1, seed=0)
    for product in (root / "products").iterdir():  # one kind of defect is enough
        for defect in sorted((product / "ground_truth").iterdir())[1:]:
            shutil.rmtree(defect)
            shutil.rmtree(product / "test" / defect.name)
    for i, name in enumerate(MVTEC_CLASSES):
        shutil.copytree(root / "products" / ("gear", "cloth")[i % 2], root / "data" / "mvtec" / name)
    lines = []
    for name in VISA_CLASSES:
        folder = root / "data" / "VisA" / name / "Data"
        for part in ("Images/Normal", "Images/Anomaly", "Masks/Anomaly"):
            (folder / part).mkdir(parents=True)
        gear = root / "products" / "gear"
        normal = [*sorted((gear / "train" / "good").iterdir()), *sorted((gear / "test" / "good").iterdir())]
        for i, path in enumerate(normal):
            shutil.copy(path, folder / "Images" / "Normal" / f"{i:03d}.png")
            lines.append(f"{name},{'test' if i == len(normal) - 1 else 'train'},normal,{name}/Data/Images/Normal/{i:03d}.png,")
        for i, mask in enumerate(sorted((gear / "ground_truth").rglob("*.png"))):
            image = gear / "test" / mask.parent.name / mask.name.replace("_mask", "")
            shutil.copy(image, folder / "Images" / "Anomaly" / f"{i:03d}.png")
            shutil.copy(mask, folder / "Masks" / "Anomaly" / f"{i:03d}.png")
            lines.append(f"{name},test,anomaly,{name}/Data/Images/Anomaly/{i:03d}.png,{name}/Data/Masks/Anomaly/{i:03d}.png")
    shutil.copytree(root / "products" / "gear", root / "data" / "VisA" / "bottle")  # a name that MVTec has
    split = root / "data" / "VisA" / "split_csv" / "1cls.csv"
    split.parent.mkdir()
    split.write_text("\n".join(["object,split,label,image,mask", *lines]) + "\n")
    return root / "data"


def small(tensors):
    return {name: array * np.float32(0.05) if array.dtype == np.float32 else array for name, array in tensors.items()}


@pytest.fixture(scope="module")
def models():
    """The tiny models' tensors under the originals' names."""
    config = preset("tiny").updated({key: value for key, value in TINY.items() if key != "scoring.backbone"})
    params, vae = _core.Params(), Autoencoder(config.autoencoder, 32, 1, load=False).params
    _core.Sampler(params, config.denoiser(), 1)
    original = layouts.to_original(layouts.random_tensors(params.shapes()))
    unet = {name.removeprefix("unet."): array for name, array in original.items() if name.startswith("unet.")}
    autoencoder = layouts.to_original(layouts.random_tensors(vae.shapes()))
    found = {"unet": unet, "vae": autoencoder, "clip_text": layouts.random_tensors(layouts.clip_shapes())}
    found["resnet"] = layouts.resnet_tensors(blocks=(2, 2, 2, 2), bottleneck=False, width=64)
    return {family: small(tensors) for family, tensors in found.items()}


@pytest.fixture(scope="module")
def weights(models, tmp_path_factory):
    """Stable Diffusion's checkpoint as Lightning wrote it, kl-f8's autoencoder beside it, and torchvision's ResNet."""
    folder = tmp_path_factory.mktemp("weights")
    roots = {"unet": "model.diffusion_model.", "vae": "first_stage_model.", "clip_text": "cond_stage_model.transformer."}
    parts = [layouts.with_root(models[family], root) for family, root in roots.items()]
    layouts.torch_zip(folder / "v1-5-pruned.ckpt", parts[0] | parts[1] | parts[2] | layouts.BUFFERS, layouts.lightning)
    (folder / "kl-f8").mkdir()
    layouts.torch_zip(folder / "kl-f8" / "model.ckpt", models["vae"], layouts.lightning)
    save_file({name: np.asarray(array) for name, array in models["resnet"].items()}, folder / "resnet18.safetensors")
    (folder / "README.md").write_text("nothing to see here\n" * 100)
    return folder


@pytest.fixture(scope="module")
def reproduce(trees, weights):
    def run(table, setting, out, *more, data=trees, at=weights, **changes):
        where = ["--data", str(data), "--weights", str(at), "--out", str(out)]
        return main(["reproduce", table, "--setting", setting, *where, *arguments(*more, **changes)])

    return run


@pytest.fixture(scope="module")
def finished(reproduce, tmp_path_factory):
    """A folder with two rows of the ablation, run without interruption."""
    out = tmp_path_factory.mktemp("reproduced")
    assert reproduce("table5", "1", out, "--strategies", "cdad", "without_cdm") == 0
    return out


def losses(folder, name="loss.csv"):
    with open(folder / name, newline="") as file:
        return list(csv.DictReader(file))


def measures(folder):
    return losses(folder, "metrics.csv")


def same_weights(path, other):
    ours, theirs = ({n: a for n, a in layouts.load_tensors(p).items() if n.startswith("model/")} for p in (path, other))
    assert ours.keys() == theirs.keys() != set()
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)


def test_the_ablation_shares_its_first_task(finished):
    cdad, without = (finished / "mvtec-14-1" / strategy for strategy in ("cdad", "without_cdm"))
    # epochs of 42 images in batches of 4, and 2 of 3 images
    assert [row["task"] for row in losses(cdad)] == 11 * ["0"] + 2 * ["1"]
    assert [row["task"] for row in losses(without)] == 2 * ["1"]
    assert [row["loss"] for row in losses(cdad)[11:]] != [row["loss"] for row in losses(without)][1:]
    same_weights(cdad / "tasks" / "0.safetensors", without / "tasks" / "0.safetensors")
    table = (finished / "table5.txt").read_text().splitlines()
    assert [line.split()[:2] for line in table[3:]] == [["mvtec-14-1", "cdad"], ["mvtec-14-1", "without_cdm"]]
    summary = read_json(cdad / "results.json").summary()
    cell = " / ".join(f"{100 * summary[measure]['average']:.1f}" for measure in ("image_auroc", "pixel_auroc"))
    assert cell in table[3]


def test_other_measures_of_the_same_runs_train_nothing(finished, reproduce, capsys):
    before = (finished / "mvtec-14-1" / "cdad" / "loss.csv").stat().st_mtime_ns
    assert reproduce("table6", "1", finished) == 0
    out = capsys.readouterr().out
    assert "time: 0 of 13 training steps are left" in out and "image_ap / pixel_ap" in out
    assert reproduce("table9", "mvtec-14-1", finished) == 0
    assert (finished / "mvtec-14-1" / "cdad" / "loss.csv").stat().st_mtime_ns == before
    table = (finished / "table9.txt").read_text().splitlines()
    assert [line.split()[0] for line in table[3:]] == [*MVTEC_CLASSES, "mean"]
    rows = [row for row in measures(finished / "mvtec-14-1" / "cdad") if row["after_task"] == "1"]
    zipper = next(row for row in rows if row["class"] == "zipper")
    assert f"{100 * float(zipper['image_auroc']):.1f} / {100 * float(zipper['pixel_auroc']):.1f}" in table[-2]
    mean = sum(float(row["image_auroc"]) for row in rows) / len(rows)
    assert table[-1].split()[1] == f"{100 * mean:.1f}"


def test_the_same_command_goes_on_to_the_same_bits(finished, reproduce, tmp_path, monkeypatch, capsys):
    """Interrupted twice, then with a damaged checkpoint."""
    whole = _Pace.__call__

    def interrupted_after(steps):
        told = []

        def stop(self, report):
            told.append(report.step)
            if len(told) == steps:
                raise KeyboardInterrupt
            whole(self, report)

        with monkeypatch.context() as patch:
            patch.setattr(_Pace, "__call__", stop)
            assert reproduce("table2", "1", tmp_path) == 130

    interrupted_after(7)
    assert "s a step" not in capsys.readouterr().out and not (tmp_path / "table2.txt").exists()
    assert reproduce("table2", "1", tmp_path, "--dry-run") == 0
    assert "6 of 13 training steps are left" in capsys.readouterr().out
    interrupted_after(2)
    ours, other = (folder / "mvtec-14-1" / "cdad" for folder in (tmp_path, finished))
    checkpoint = ours / "checkpoint.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    capsys.readouterr()
    assert "--resume-previous" in refused(capsys, reproduce("table2", "1", tmp_path))
    assert reproduce("table2", "1", tmp_path, "--resume-previous") == 0
    assert losses(ours) == losses(other)
    same_weights(checkpoint, other / "checkpoint.safetensors")
    assert measures(ours) == measures(other)


def test_across_data_sets(reproduce, trees, weights, tmp_path, capsys):
    """Both layouts; a class is taken from its own data set, whatever the other holds."""
    assert reproduce("table4", "1", tmp_path) == 0
    out = capsys.readouterr().out
    assert "note" not in out and "s a step" in out
    run = tmp_path / "mvtec-visa" / "cdad"
    assert [row["task"] for row in losses(run)] == 12 * ["0"] + 18 * ["1"]
    assert [row["class"] for row in measures(run) if row["after_task"] == "1"] == [*MVTEC_CLASSES, *VISA_CLASSES]
    assert "mvtec-visa" in (tmp_path / "table4.txt").read_text()
    found = prepare("table4", preset("tiny"), data=[trees], weights=[weights], out=tmp_path, settings=["2", "2"], changes=TINY)
    assert len(found.runs) == len(TABLES["table4"].strategies)
    with pytest.raises(ValueError, match="nan s is no estimate"):
        describe(found, step_seconds=float("nan"))
    assert {path.is_relative_to(trees / "mvtec") for name in MVTEC_CLASSES for path in found.dataset[name].train} == {True}
    assert set(found.dataset) == {*MVTEC_CLASSES, *VISA_CLASSES}


def test_every_setting_is_found_and_planned(trees, weights, tmp_path):
    config = preset("tiny")
    changes = {key: value for key, value in TINY.items() if not key.endswith("epochs")}
    for name, table in TABLES.items():
        found = prepare(name, config, data=[trees], weights=[weights], out=tmp_path, changes=changes)
        assert [run.setting for run in found.runs[:: len(table.strategies)]] == list(table.settings)
        for run in found.runs:
            protocol = PROTOCOLS[run.setting]
            images = [sum(len(found.dataset[c].train) for c in task) for task in protocol.tasks]
            steps = [(100 if k else 500) * -(-n // 4) for k, n in enumerate(images)]
            assert list(run.steps) == ([0, *steps[1:]] if run.strategy == "without_cdm" else steps)
            assert run.config.scoring.weights == str(weights / "resnet18.safetensors")
            assert run.config.autoencoder.weights == (str(weights / "kl-f8" / "model.ckpt"),)
            assert run.config.unet.weights == run.config.text.weights == str(weights / "v1-5-pruned.ckpt")


def test_a_pipeline_of_diffusers(models, weights, trees, tmp_path):
    folder = tmp_path / "stable-diffusion-v1-5"
    converted = {
        "unet": {layouts.to_diffusers_unet(name, 1, 2): array for name, array in models["unet"].items()},
        "vae": dict(layouts.to_diffusers_vae(name, array, 4) for name, array in models["vae"].items()),
        "text_encoder": models["clip_text"],
    }
    for part, tensors in converted.items():
        (folder / part).mkdir(parents=True)
        name = "model" if part == "text_encoder" else "diffusion_pytorch_model"
        save_file({key: np.ascontiguousarray(array) for key, array in tensors.items()}, folder / part / f"{name}.safetensors")
    blob = tmp_path / "blobs" / "abc"  # as a cache of Hugging Face's has it: one file, and what links to it
    blob.parent.mkdir()
    shutil.copy(weights / "resnet18.safetensors", blob)
    (folder / "resnet.safetensors").symlink_to(blob)
    config = prepare("table2", preset("tiny"), data=[trees], weights=[tmp_path], out=tmp_path, changes=TINY).runs[0].config
    assert config.unet.weights == config.text.weights == config.autoencoder.weights[0] == str(folder)
    assert Path(config.scoring.weights).resolve() == blob


def test_recipes(trees, weights, tmp_path):
    def config(table, recipe, **changes):
        where = {"data": [trees], "weights": [weights], "out": tmp_path}
        return prepare(table, preset("tiny"), **where, recipe=recipe, changes=TINY | changes).runs[0].config

    paper = config("table2", "paper")
    assert paper.continual.method == "isvd" and paper.continual.gamma == 0.999 and paper.scoring.layers == (0, 1, 2)
    kept = {key: value for key, value in PAPER_RECIPE.items() if key not in TINY}
    assert paper.updated(kept) == paper
    visa = config("table3", "paper")
    assert visa.scoring.layers == (4, 1, 3) and visa.training.perturb_share == 2 / 3
    assert config("table3", "default").scoring.layers == (0, 1, 2)
    assert config("table3", "paper", **{"scoring.layers": [1]}).scoring.layers == (1,)


def test_weights_of_another_size_than_the_paper_s_preset(trees, weights, tmp_path, capsys):
    where = ["--data", str(trees), "--weights", str(weights), "--out", str(tmp_path)]
    error = refused(capsys, main(["reproduce", "table2", "--setting", "4", *where, "--dry-run"]))
    assert error.count("do not fit") == 5  # the autoencoder is in two files
    assert preset("sd15").training.batch_size == 12 and preset("sd15").training.lr == 1e-5


def test_an_estimate_ends_before_anything_is_made(reproduce, tmp_path, capsys):
    assert reproduce("table2", "4", tmp_path / "out", "--dry-run", "--step-seconds", "60") == 0
    out = capsys.readouterr().out
    # 30 images in batches of 4, and five times 2 epochs of 3
    assert "18 of 18 training steps are left, 18 min at 60 s each" in out and "memory in GiB" in out
    assert not (tmp_path / "out").exists()


def test_joint_training_is_counted_with_all_images_so_far():
    tasks = protocol("gear,cloth/steel", ["gear", "cloth", "steel"])
    told = {strategy: _trained(preset("tiny").updated({"continual.strategy": strategy}), tasks) for strategy in ("joint", "cdad")}
    assert told == {"joint": [("gear", "cloth"), ("gear", "cloth", "steel")], "cdad": [("gear", "cloth"), ("steel",)]}


@pytest.mark.parametrize(("seconds", "text"), [(0, "0 s"), (59.6, "1 min"), (3700, "1 h 1 min"), (200000, "2 d 7 h"), (86400, "1 d")])
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_what_there_is(capsys):
    assert main(["reproduce", "--list"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in TABLES) and "4: mvtec-10-1x5" in out and "2: visa-mvtec" in out
    settings = {setting for table in TABLES.values() for setting in table.settings}
    assert settings == {name for name in PROTOCOLS if name.startswith(("mvtec", "visa"))}


# What is refused, in one line, before anything starts.


def refused(capsys, status):
    assert status == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_everything_that_is_missing_is_told_at_once(reproduce, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    error = refused(capsys, reproduce("table4", "1", tmp_path / "out", data=tmp_path / "nowhere", at=tmp_path / "empty"))
    for text in ("nowhere does not exist", "the classes of MVTec", "the classes of VisA", "no file holds Stable Diffusion's U-Net",
                 "no file holds KL autoencoder", "no file holds CLIP's text model", "no file holds ResNet"):  # fmt: skip
        assert text in error
    assert not (tmp_path / "out").exists()


def test_missing_classes_and_test_images(reproduce, trees, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(trees / "mvtec", data)
    shutil.rmtree(data / "tile")
    (data / "wood").rename(data / "wod")
    error = refused(capsys, reproduce("table2", "2", tmp_path / "out", data=data))
    assert f"MVTec in {data} lacks 2 of 15 classes: tile, wood" in error
    shutil.copytree(trees / "mvtec" / "tile", data / "tile")
    (data / "wod").rename(data / "wood")
    shutil.rmtree(data / "wood" / "test")
    assert "no test images of wood" in refused(capsys, reproduce("table2", "2", tmp_path / "out", data=data))


def test_damaged_data(reproduce, trees, tmp_path, capsys):
    data = tmp_path / "VisA"
    shutil.copytree(trees / "VisA", data)
    split = data / "split_csv" / "1cls.csv"
    split.write_text(split.read_text().replace("pcb1,train,normal", "pcb1,train,anomaly"))
    assert "1cls.csv, line" in refused(capsys, reproduce("table3", "1", tmp_path / "out", data=data))
    shutil.rmtree(split.parent)
    mask = data / "fryum" / "Data" / "Masks" / "Anomaly" / "000.png"
    mask.unlink()
    assert "has no mask" in refused(capsys, reproduce("table3", "1", tmp_path / "out", data=data))


def test_a_split_of_one_s_own_is_noted(reproduce, trees, tmp_path, capsys):
    data = tmp_path / "VisA"
    shutil.copytree(trees / "VisA", data)
    shutil.rmtree(data / "split_csv")
    for name in VISA_CLASSES:
        normal = data / name / "Data" / "Images" / "Normal"
        for i in range(4, 10):
            shutil.copy(normal / "000.png", normal / f"{i:03d}.png")
    assert reproduce("table3", "1", tmp_path / "out", "--dry-run", data=data) == 0
    assert f"note: {data} has no split_csv/1cls.csv: every tenth normal image" in capsys.readouterr().out


def test_weights_that_are_damaged_doubled_or_of_another_size(reproduce, weights, tmp_path, capsys):
    folder, out = tmp_path / "weights", tmp_path / "out"
    shutil.copytree(weights, folder)
    shutil.copy(folder / "v1-5-pruned.ckpt", folder / "copy.ckpt")
    error = refused(capsys, reproduce("table2", "1", out, at=folder))
    assert "Stable Diffusion's U-Net is in 2 files" in error and "copy.ckpt" in error and "KL autoencoder" not in error
    named = {"unet_weights": str(folder / "copy.ckpt"), "text_weights": str(folder / "copy.ckpt")}
    assert reproduce("table2", "1", out, "--dry-run", at=folder, **named) == 0
    capsys.readouterr()
    (folder / "copy.ckpt").unlink()
    whole = (folder / "v1-5-pruned.ckpt").read_bytes()
    (folder / "v1-5-pruned.ckpt").write_bytes(whole[: len(whole) // 2])
    error = refused(capsys, reproduce("table2", "1", out, at=folder))
    assert "no file holds Stable Diffusion's U-Net" in error and "v1-5-pruned.ckpt: " in error
    (folder / "v1-5-pruned.ckpt").write_bytes(whole)
    error = refused(capsys, reproduce("table2", "1", out, at=folder, scoring_backbone="resnet34"))
    assert "no file holds ResNet" in error and "missing: layer1.2.conv1.weight" in error


def test_a_run_with_another_configuration_stays(finished, reproduce, capsys):
    error = refused(capsys, reproduce("table2", "1", finished, training_lr=1e-4))
    assert "another configuration (training.lr = 0.001, not 0.0001)" in error


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ([], "a table, --data, --out wanted"),
        (["table2", "--data", "x", "--out", "y", "--setting", "5"], "table2 has no setting '5'; it has 1: mvtec-14-1"),
        (["table3", "--data", "x", "--out", "y", "--setting", "mvtec-14-1"], "table3 has no setting"),
        (["table2", "--data", "x", "--out", "y", "--strategies", "best"], "no strategy 'best'"),
        (["table2", "--data", "x", "--out", "y", "--set", "continual.strategy=ewc"], "is of the table's rows"),
        (["table2", "--data", "x", "--out", "y", "--set", "training.epoch=1"], "did you mean 'epochs'"),
    ],
)
def test_wrong_arguments(command, message, capsys):
    assert message in refused(capsys, main(["reproduce", *command]))
