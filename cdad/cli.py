"""The command line: cdad train, eval, predict, threshold, export, demo, plan, profile, reproduce, weights, info, doctor."""

from __future__ import annotations

import argparse
import csv
import io
import json
import logging
import os
import shlex
import signal
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from . import __version__, _core, process_memory
from .atomic import replacing, write_atomically
from .checkpoint import FORMAT, Checkpoint
from .checkpoint_report import describe_checkpoint, format_checkpoint
from .config import PAPER_RECIPE, PRESETS, Config, preset
from .config_checks import STRATEGIES
from .data import PRODUCTS, open_dataset, write_dataset
from .data.records import list_images
from .devices import describe_cuda
from .errors import DataError, ImageError, LimitError
from .evaluation import ClassEvaluation, Decisions, evaluate, write_contact_sheet
from .metrics import f1_max
from .model import ContinualModel
from .planning import Plan, plan
from .profile import profile_prediction, profile_training
from .protocols import PROTOCOLS, protocol
from .reproduce import TABLES, describe_tables, execute, prepare
from .reproduce import describe as describe_reproduction
from .results import compare_summaries, format_table, to_json
from .run import CHECKPOINT, alone, in_turn, is_begun, read_config, run_or_resume, run_protocol
from .weights import Collection
from .weights.hub import PUBLISHED, pull
from .weights.report import convert, describe, format_description


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit status: 0; 1 for an error that is told in one line, an image that cannot be read or a damaged
    file; 130 after Ctrl-C, 143 after SIGTERM. Wrong arguments end the process with 2."""
    _check_streams()
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    warnings.formatwarning = lambda message, *_, **__: f"WARNING: {message}\n"
    signal.signal(signal.SIGTERM, _terminate)
    try:
        # An unset variable; Path takes it for the folder that one is in.
        if empty := [name for name, value in vars(arguments).items() if value == "" or isinstance(value, list) and "" in value]:
            raise ValueError(f"{empty[0].removesuffix('_name')} is an empty text")
        if arguments.threads is not None:
            _core.set_threads(arguments.threads)
        if arguments.device:
            _set_device(arguments)
        status = arguments.run(arguments)
        sys.stdout.flush()
        return status
    except _Terminated:
        return 143
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read the output has enough of it, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that Python's last flush finds no pipe
        return 141
    except (OSError, ValueError, RuntimeError, MemoryError, OverflowError) as error:
        print(f"cdad: {type(error).__name__}: {error}", file=sys.stderr)
        return 1


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no count")
    return int(text)


def _check_streams() -> None:
    """Closed ones swallow what is written, and what an encoding lacks, as names of files may have it, ends no run."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))
        elif getattr(stream, "errors", None) == "strict" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="surrogateescape" if stream.encoding.lower().startswith("utf") else "backslashreplace")


PLAN_HELP = """\
A column is a phase of a run, its last row what the process takes then, beside some 80 MiB of Python and its
libraries:
  training     steps of the first task
  calibrating  the scores after a task, and testing within a run
  collecting   significant representations after a task, of strategies that keep some
  increment    steps of the second task, with the bases of the first
  prediction   of images by a model that was loaded for that alone
Rows: workspace is the memory in which the networks run, one at a time, each one's share of it below the table; moments are
AdamW's, of what a task moves; update is what projections work in; autoencoder and backbone are their weights; condition
is that of a batch that is drawn; data is decoded images and latents; batches those made ahead; images those on their way
to be encoded or scored; streams collect features; solving is what bases are computed in; bases, while they are made, are what
they take beyond the streams whose place they take; directions are those in which a later task moves weights; kept is what
strategies keep beside, in blocks as large as the weights. Nothing of it is allocated for planning. A time is
an estimate: the operations of the products, and what the optimiser goes through, by the speed of a part of the network with
one image."""


class _Terminated(KeyboardInterrupt):
    """SIGTERM: the run is kept as after Ctrl-C."""


def _terminate(signum, frame) -> None:
    raise _Terminated


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("cdad", description="Continual anomaly detection by latent diffusion.")
    parser.add_argument("--version", action="version", version=f"cdad {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        sub.add_argument("--threads", type=int, help="threads of the core (default: every processor)")
        sub.add_argument("--device", help="cpu, cuda or cuda:N (default: CDAD_DEVICE or cpu)")
        return sub

    train = command("train", _train, "Train a protocol's tasks one after the other and test after each.")
    train.add_argument("--data", required=True, help="folder in MVTec or VisA layout, or of normal images; or a table of images, *.csv")
    train.add_argument("--out", required=True, help="the run's folder")
    train.add_argument("--protocol", default="each", help=f"a name ({', '.join(PROTOCOLS)}), 'each' (default), or a,b/c/d")
    train.add_argument("--preset", choices=list(PRESETS), help="default: small")
    train.add_argument("--config", help="a TOML file instead of a preset")
    train.add_argument("--strategy", choices=STRATEGIES, help="continual.strategy")
    train.add_argument("--recipe", choices=["default", "paper"], default="default", help="paper: the paper's text")
    train.add_argument("--seed", type=int, help="seed of everything")
    train.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="e.g. training.steps=200")
    train.add_argument("--resume", action="store_true", help="go on with the run in the folder")
    train.add_argument("--resume-previous", action="store_true", help="the same from the checkpoint before a damaged one")
    train.add_argument("--start-from", help="a checkpoint that has learned the first task(s) of this protocol, as tasks/0.safetensors of a run")
    train.add_argument("--quiet", action="store_true", help="no progress bars")
    train.add_argument("--no-masks", action="store_true", help="defective test images may lack masks: no measures of pixels then")

    evaluation = command("eval", _eval, "Test a trained model on a data set.")
    evaluation.add_argument("model", help="a run's folder or a checkpoint")
    evaluation.add_argument("--data", required=True, help="folder in MVTec or VisA layout, or a table of images, *.csv")
    evaluation.add_argument("--no-masks", action="store_true", help="defective images may lack masks: no measures of pixels then")
    evaluation.add_argument("--classes", nargs="*", help="default: all that the model has learned and the data hold")
    evaluation.add_argument("--out", help="folder for metrics.json and contact sheets")
    evaluation.add_argument("--quiet", action="store_true", help="no progress bars")

    predict = command("predict", _predict, "Score images: a CSV line each, and maps as pictures with --out. Exit status 1: not all could be read.")
    predict.add_argument("model", help="a run's folder or a checkpoint")
    predict.add_argument("images", nargs="+", metavar="IMAGE", help="a file, or a folder: all images in it")
    predict.add_argument("--class", dest="class_name", help="the product, if known")
    predict.add_argument("--out", help="folder for pictures; 1, dark, to 4 times what is normal on average, where scores are calibrated")
    predict.add_argument("--raw", action="store_true", help="with --out, each map as it is, too: float32 in a file *_map.npy")

    threshold = command("threshold", _threshold, "Measure above which score a class's images are anomalous, and keep it in the model.")
    threshold.add_argument("model", help="a run's folder or a checkpoint: it is written again")
    threshold.add_argument("images", nargs="+", metavar="IMAGE", help="normal images that it was not trained on")
    threshold.add_argument("--class", dest="class_name", required=True, help="the product")
    threshold.add_argument("--quantile", type=float, default=1.0, help="of their scores (default: 1, the highest)")

    export = command("export", _export, "Write a model for predictions alone: a smaller file, without what only learning needs.")
    export.add_argument("model", help="a run's folder or a checkpoint")
    export.add_argument("out", metavar="OUT", help="a file for `cdad predict`, `cdad eval` and ContinualModel.load")

    demo = command("demo", _demo, "Learn synthetic products, and compare CDAD with plain fine-tuning.")
    demo.add_argument("--out", default="demo-run", help="folder for data, runs and pictures (default: demo-run)")
    demo.add_argument("--quick", action="store_true", help="a version of one to three minutes that shows the plumbing only")

    planning = command("plan", _plan, "Say what a run would take, without running it: memory, a checkpoint's size, time.")
    planning.formatter_class = argparse.RawDescriptionHelpFormatter
    planning.epilog = PLAN_HELP
    planning.add_argument("--preset", choices=list(PRESETS), help="default: small")
    planning.add_argument("--config", help="a TOML file instead of a preset")
    planning.add_argument("--batch", type=int, help="training.batch_size")
    planning.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="e.g. training.clip_norm=0")
    planning.add_argument("--strategy", choices=STRATEGIES, help="continual.strategy")
    planning.add_argument("--recipe", choices=["default", "paper"], default="default", help="paper: the paper's text")
    planning.add_argument("--images", type=int, default=300, help="training images of a task (default: 300)")
    planning.add_argument("--classes", type=int, default=1, help="classes of a task (default: 1)")
    planning.add_argument("--rank-share", type=float, default=0.5, help="of the width, assumed of a task's bases (default: 0.5)")
    planning.add_argument("--rows", type=_count, default=10, help="weights to show, the largest first (default: 10)")
    planning.add_argument("--time", action="store_true", help="estimate times by a measurement of some seconds here")
    planning.add_argument("--json", action="store_true", help="everything, in bytes and seconds, as JSON")
    planning.set_defaults(resume=False, seed=None)

    profile = command("profile", _profile, "Show where a prediction's or a training step's time and memory go.")
    profile.add_argument("--preset", choices=list(PRESETS), help="default: small")
    profile.add_argument("--config", help="a TOML file instead of a preset")
    profile.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="e.g. training.batch_size=1")
    profile.add_argument("--train", action="store_true", help="a training step, not a prediction")
    profile.add_argument("--repeats", type=int, default=5, help="runs whose medians are shown (default: 5)")
    profile.add_argument("--rows", type=_count, default=15, help="nodes to show, the slowest first (default: 15)")
    profile.add_argument("--trace", help="write the last run for chrome://tracing or Perfetto")
    profile.add_argument("--json", help="write the rates beside NumPy's matrix product as records")
    profile.set_defaults(resume=False, recipe="default", strategy=None, seed=None)

    again = command("reproduce", _reproduce, "Train and test what a table of the paper shows; the same command goes on.")
    again.add_argument("table", nargs="?", choices=list(TABLES))
    again.add_argument("--list", action="store_true", help="say what there is, and end")
    again.add_argument("--setting", nargs="+", default=[], metavar="N", help="numbers or protocols (default: all of the table's)")
    again.add_argument("--data", nargs="+", default=[], metavar="DIR", help="the folders of MVTec and VisA, or one that holds them")
    again.add_argument("--weights", nargs="+", default=[], metavar="PATH", help="where Stable Diffusion 1.5, CLIP and ResNet-50 are")
    again.add_argument("--out", help="folder of the runs and tables")
    again.add_argument("--dry-run", action="store_true", help="check everything, estimate time and memory, and end")
    again.add_argument("--step-seconds", type=float, help="of a training step, for the estimate; else the first steps tell")
    again.add_argument("--preset", default="sd15", choices=list(PRESETS), help="default: sd15; another shrinks it")
    again.add_argument("--recipe", choices=["default", "paper"], default="default", help="paper: the paper's text")
    again.add_argument("--strategies", nargs="+", default=[], metavar="NAME", help="the rows (default: the table's)")
    again.add_argument("--seed", type=int, help="seed of everything")
    again.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="e.g. training.increment_epochs=500")
    again.add_argument("--resume-previous", action="store_true", help="go on from the checkpoint before a damaged one")
    again.add_argument("--quiet", action="store_true", help="no progress bars")

    weights = commands.add_parser("weights", help="Look at weight files, convert and fetch them.")
    actions = weights.add_subparsers(required=True, metavar="ACTION")

    def action(name: str, run, text: str) -> argparse.ArgumentParser:
        sub = actions.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run, threads=None, device=None)
        return sub

    inspect = action("inspect", _weights_inspect, "Say what a weight file, folder or checkpoint is, and how its tensors are used.")
    inspect.add_argument("path", metavar="FILE|FOLDER", help="a weight file or folder, a checkpoint or a run's folder")
    inspect.add_argument("--variant", help="of the files in a folder: fp16, non_ema")
    inspect.add_argument("--json", action="store_true", help="everything, as JSON")
    convert = action("convert", _weights_convert, "Write safetensors with the original (CompVis, torchvision) names.")
    convert.add_argument("path", metavar="IN", help="a weight file or folder")
    convert.add_argument("out", metavar="OUT")
    convert.add_argument("--variant", help="of the files in a folder: fp16, non_ema")
    convert.add_argument("--ema", action="store_true", help="the U-Net's moving averages instead of its weights")
    pull = action("pull", _weights_pull, "Fetch published weights (pip install 'cdad[hub]').")
    pull.add_argument("name", choices=list(PUBLISHED))
    pull.add_argument("--to", required=True, metavar="DIR")

    command("info", _info, "Print the version, the build and the presets.")
    command("doctor", _doctor, "Say what a GPU needs, what of it is found here, and why the rest is not.")
    return parser


def _config(arguments: argparse.Namespace) -> Config:
    if arguments.config and arguments.preset:
        raise ValueError("--config and --preset: one of them is wanted, as a TOML file names its preset itself")
    begun = arguments.resume and (Path(arguments.out) / "config.toml").exists()
    if begun and (not arguments.config or is_begun(Path(arguments.out))):
        config = read_config(arguments.out)
        if arguments.config:  # what it does not name is as it was: defaults may have changed since
            config = Config.from_toml(arguments.config, base=config)
        if arguments.preset not in (None, config.preset):
            raise ValueError(f"--preset {arguments.preset}: the run that goes on has the preset {config.preset}")
    else:
        config = Config.from_toml(arguments.config) if arguments.config else preset(arguments.preset or "small")
    changes: dict[str, object] = dict(PAPER_RECIPE) if arguments.recipe == "paper" else {}
    if arguments.strategy:
        changes["continual.strategy"] = arguments.strategy
    return config.updated(changes | _changes(arguments))


def _changes(arguments: argparse.Namespace) -> dict[str, object]:
    """What ``--seed`` and ``--set`` change, by key."""
    changes: dict[str, object] = {}
    if arguments.seed is not None:
        changes["seed"] = arguments.seed
    for item in arguments.set:
        key, equals, text = item.partition("=")
        if not equals:
            raise ValueError(f"--set {item}: KEY=VALUE is wanted")
        if key == "preset":
            raise ValueError(f"--set {item}: that is the name alone; --preset begins with another preset's values")
        try:
            changes[key] = json.loads(text)
        except json.JSONDecodeError:
            changes[key] = text
    return changes


def _train(arguments: argparse.Namespace) -> int:
    arguments.resume |= arguments.resume_previous
    config = _config(arguments)
    dataset = open_dataset(arguments.data, require_masks=not arguments.no_masks)
    chosen = protocol(arguments.protocol, list(dataset))
    began = time.monotonic()
    results = run_protocol(
        config,
        dataset,
        chosen,
        arguments.out,
        resume=arguments.resume,
        previous=arguments.resume_previous,
        start_from=arguments.start_from and _checkpoint(arguments.start_from),
        progress=not arguments.quiet,
        tell=lambda text: print(text, flush=True),
    )
    summary = results.summary()
    columns = {"A- (%)": "average", "FM (%)": "forgetting", "BWT (%)": "backward_transfer"}
    rows = [{"measure": name} | {column: 100 * v[kind] for column, kind in columns.items()} for name, v in summary.items()]
    if results.matrix.n_learned:
        print(format_table(rows, digits=2, title=f"\n{chosen.name}, {config.continual.strategy}, seed {config.seed}:"))
        if elsewhere := results.matrix.untested():
            print(f"-: not defined, as nothing was tested here when {', '.join(elsewhere)} was learned, or only normal images or only defective ones")
        elif absent := results.matrix.undefined():
            print(f"-: not defined, as tests of {', '.join(absent)} lack normal or defective images, or masks")
    else:
        print("no task has a measure: no class has test images, or in each task one has only normal or only defective ones")
    print(f"{time.monotonic() - began:.0f} s; peak memory {process_memory.peak() >> 20} MiB; everything is in {arguments.out}")
    return 0


def _checkpoint(path: str) -> Path:
    given = Path(path)
    found = given / CHECKPOINT if given.is_dir() else given
    if not found.exists():
        raise FileNotFoundError(f"there is no model at {path}: a run's folder that has {CHECKPOINT} is wanted, or a checkpoint")
    return found


def _folder(path: str | None) -> Path | None:
    """The folder of ``--out``, made before anything is computed for it."""
    if path is not None:
        Path(path).mkdir(parents=True, exist_ok=True)
    return path and Path(path)


_SHOWN = (1.0, 4.0)  # the range of colours of calibrated maps


def _shortened(stem: str) -> str:
    """So that a file's name has room for more."""
    name = os.fsencode(stem)
    return stem if len(name) <= 200 else name[:200].decode(errors="ignore")


def _eval(arguments: argparse.Namespace) -> int:
    model = ContinualModel.load(_checkpoint(arguments.model), predict_only=True)
    out = _folder(arguments.out)
    dataset = open_dataset(arguments.data, require_masks=not arguments.no_masks, require_train=False)
    results = evaluate(model, dataset, arguments.classes or None, progress=not arguments.quiet)
    rows = [{"class": name, **{k: 100 * v for k, v in r.measures.items()}} for name, r in results.items()]
    print(format_table(rows, digits=2, title=f"percent; features: {model.features.name}"))
    decided = {name: decisions for name, r in results.items() if (decisions := r.decisions)}
    if decided:
        print(format_table([_decided(name, results[name], d) for name, d in decided.items()], digits=2, title="at the classes' thresholds"))
    if out:
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(["class", "image", "label", "kind", "score", *(["anomalous"] if decided else [])])
        for name, r in results.items():
            above = r.prediction.anomalous.astype(int) if name in decided else [""] * len(r.samples)
            for s, score, is_above in zip(r.samples, r.prediction.scores, above, strict=True):
                writer.writerow([name, s.path, s.label, s.defect, f"{score:.6g}", *([is_above] if decided else [])])
        write_atomically(out / "scores.csv", os.fsencode(table.getvalue()))
        record = to_json({name: r.measures | ({"decisions": asdict(decided[name])} if name in decided else {}) for name, r in results.items()})
        write_atomically(out / "metrics.json", (json.dumps(record, indent=1, allow_nan=False) + "\n").encode())
        for name, result in results.items():
            write_contact_sheet(result, out / f"{name}.png")
    return 0


def _decided(name: str, result: ClassEvaluation, decisions: Decisions) -> dict[str, Any]:
    d, labels = decisions, [sample.label for sample in result.samples]
    return {
        "class": name,
        "threshold": f"{d.threshold:.4g}",
        "defective above": f"{d.found} of {d.found + d.missed}",
        "normal above": f"{d.refused} of {d.refused + d.passed}",
        "precision": 100 * d.precision,
        "recall": 100 * d.recall,
        "F1": 100 * d.f1,
        "F1 at best": 100 * f1_max(labels, result.prediction.scores),
    }


def _images_of(given: str) -> list[Path]:
    path = Path(given)
    if not path.is_dir():
        return [path]
    images = list_images(path)
    if not images:
        raise DataError(f"{given} is a folder without images")
    return images


def _predict(arguments: argparse.Namespace) -> int:
    from PIL import Image

    from .data import load_images
    from .plots import overlay, shared_range

    model = ContinualModel.load(_checkpoint(arguments.model), predict_only=True)
    model.features  # noqa: B018 - loaded now: a backbone that is not there is no image's fault
    out = _folder(arguments.out)
    size, chunk = model.config.image_size, 4 * model.config.scoring.batch_size
    if arguments.raw and not out:
        raise ValueError("--raw is for the maps in --out")
    if arguments.class_name is not None:
        model.check_learned(arguments.class_name)
    images = [str(path) for given in arguments.images for path in _images_of(given)]
    writer = csv.writer(sys.stdout, lineterminator="\n")
    decides = arguments.class_name in model.thresholds
    writer.writerow(["image", "score", "anomalous"] if decides else ["image", "score"])
    failed = 0

    def tell(error: Exception) -> None:
        nonlocal failed
        failed += 1
        print(f"cdad: {type(error).__name__}: {error}", file=sys.stderr)

    def draw(number: int, path: str, found: np.ndarray) -> None:
        """One range for all pictures of calibrated scores, whatever else is scored beside them."""
        parts = [f"{number:04d}", arguments.class_name, Path(path).stem]  # classes often have images of the same names
        name = out / (_shortened("_".join(filter(None, parts))) + "_map")
        if arguments.raw:
            with replacing(f"{name}.npy") as file:
                np.save(file, found)
        low, high = _SHOWN if model.config.scoring.calibrate else shared_range([found])
        with replacing(f"{name}.png") as file:
            Image.fromarray(overlay(load_images([path], size)[0], found, vmin=low, vmax=high)).save(file, "PNG")

    def score(first: int, paths: list[str]) -> None:
        """Rows of these images; what cannot be read has none of its own, and costs the others nothing."""
        try:
            prediction = model.predict(paths, arguments.class_name)
        except (ImageError, LimitError, OSError) as error:
            if len(paths) > 1:
                for i, path in enumerate(paths):
                    score(first + i, [path])
                return
            tell(error)
            writer.writerow([paths[0], "", ""] if decides else [paths[0], ""])
            return
        for i, path in enumerate(paths):
            row = [path, f"{prediction.scores[i]:.6g}"]
            writer.writerow([*row, int(prediction.anomalous[i])] if decides else row)
            if out:
                try:
                    draw(first + i, path, prediction.maps[i])
                except (ImageError, FileNotFoundError) as error:  # it was there a moment ago
                    tell(error)
        sys.stdout.flush()

    for first in range(0, len(images), chunk):
        score(first, images[first : first + chunk])
    return 1 if failed else 0


def _threshold(arguments: argparse.Namespace) -> int:
    path = _checkpoint(arguments.model)
    # Of a run that trains meanwhile a newer checkpoint would be replaced by this older one, or this by one without the threshold.
    with alone(path.parent) if path.name == CHECKPOINT else in_turn(path):
        model = ContinualModel.load(path)
        _check_between_tasks(model.progress, path, "measure with")
        value = model.set_threshold(arguments.class_name, arguments.images, quantile=arguments.quantile)
        model.save(path)
    print(f"{arguments.class_name}: {value:.6g}, of {len(arguments.images)} images")
    return 0


def _check_between_tasks(progress: Any, path: Path, what: str) -> None:
    if isinstance(progress, dict) and progress.get("step"):
        raise DataError(f"{path} is in the middle of a task: let it end, or {what} what the tasks before left, a file of that run's tasks/")


def _export(arguments: argparse.Namespace) -> int:
    given, out = _checkpoint(arguments.model), Path(arguments.out)
    if out.exists() and given.exists() and out.samefile(given):
        raise ValueError(f"{out} is the model itself, which learns on from what an exported one lacks: choose another file")
    if out.is_dir():
        raise ValueError(f"{out} is a folder; a file's name is wanted")
    with Checkpoint(given) as checkpoint:
        progress = checkpoint.state.get("progress")
    _check_between_tasks(progress, given, "export")  # another run would begin with it as what the tasks before left
    model = ContinualModel.load(given, predict_only=True)
    model.save(out)
    print(f"learned: {', '.join(model.classes) or 'nothing yet'}")
    print(f"{arguments.out}: {os.path.getsize(arguments.out) / 2**20:.1f} MiB")
    return 0


def _weights_inspect(arguments: argparse.Namespace) -> int:
    text: Callable[[dict[str, Any]], str] = format_description
    path = Path(arguments.path) / CHECKPOINT if (Path(arguments.path) / CHECKPOINT).is_file() else arguments.path
    with Collection(path, arguments.variant or "") as collection:
        if any(file.metadata.get("format") == FORMAT for file in collection.files):
            found, text = describe_checkpoint(path), format_checkpoint
        else:
            found = describe(collection)
    print(json.dumps(found, indent=1) if arguments.json else text(found))
    return 1 if found.get("damaged") else 0


def _weights_convert(arguments: argparse.Namespace) -> int:
    with Collection(arguments.path, arguments.variant or "") as collection:
        count = convert(collection, arguments.out, ema=arguments.ema)
    print(f"{count} tensors in {arguments.out}")
    return 0


def _weights_pull(arguments: argparse.Namespace) -> int:
    for path in pull(arguments.name, arguments.to):
        print(path)
    print(f"licence: {PUBLISHED[arguments.name].licence}")
    return 0


def _reproduce(arguments: argparse.Namespace) -> int:
    if arguments.list:
        print(describe_tables())
        return 0
    absent = [flag for flag, value in (("a table", arguments.table), ("--data", arguments.data), ("--out", arguments.out)) if not value]
    if absent:
        raise ValueError(f"{', '.join(absent)} wanted: cdad reproduce TABLE --data DIR --weights DIR --out DIR, or --list")
    reproduction = prepare(
        arguments.table,
        preset(arguments.preset),
        data=arguments.data,
        weights=arguments.weights,
        out=arguments.out,
        settings=arguments.setting,
        strategies=arguments.strategies,
        recipe=arguments.recipe,
        changes=_changes(arguments),
    )
    print(describe_reproduction(reproduction, step_seconds=arguments.step_seconds), flush=True)
    if not arguments.dry_run:
        how = {"previous": arguments.resume_previous, "progress": not arguments.quiet}
        print(execute(reproduction, **how, tell=lambda text: print(text, flush=True)))
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    out = Path(arguments.out)
    data = out / "data"
    config = preset("demo")
    if arguments.quick:
        config = config.updated({"training.steps": 8, "training.increment_steps": 8, "training.warmup": 2})
    missing = [name for name in PRODUCTS if not (data / name).exists()]
    if missing:
        print(f"drawing synthetic products into {data}")
        write_dataset(data, classes=missing, size=config.image_size, n_train=40, n_good=12, n_defect=5, seed=0)
    dataset = open_dataset(data)
    chosen = protocol("demo", list(dataset))
    summaries = {}
    for label, strategy in (("CDAD", "cdad"), ("fine-tuning", "finetune")):
        print(f"\n{label}: one model, {len(chosen.tasks)} tasks ({chosen})", flush=True)
        folder = out / strategy
        first = out / "cdad" / "tasks" / "0.safetensors"
        results = run_or_resume(
            config.updated({"continual.strategy": strategy}),
            dataset,
            chosen,
            folder,
            start_from=first if strategy == "finetune" else None,
            tell=lambda text: print(text, flush=True),
        )
        summaries[label] = results.summary()
    print()
    print(format_table(compare_summaries(summaries), title="A-: mean after the last task; FM: forgetting"))
    last = out / "cdad" / "sheets" / f"after{len(chosen.tasks) - 1}"
    print(f"\nHeat maps, a sheet a product: {last}{os.sep}*.png")
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    config = _config(arguments)
    if arguments.batch is not None:
        config = config.updated({"training.batch_size": arguments.batch})
    found = plan(
        config,
        images=arguments.images,
        classes=arguments.classes,
        rank_share=arguments.rank_share,
        layers=arguments.rows,
        time=arguments.time,
    )
    print(json.dumps(found.to_dict(), indent=1) if arguments.json else _format_plan(found))
    return 0


def _format_plan(found: Plan) -> str:
    parts = dict.fromkeys(part for phase in found.memory.values() for part in phase)
    phases = found.memory.items()
    rows: list[dict[str, object]] = [
        {"MiB": part} | {phase: of[part] / 2**20 if part in of else None for phase, of in phases} for part in parts
    ]
    rows.append({"MiB": "all"} | {phase: size / 2**20 for phase, size in found.peak.items()})
    a = found.assumed
    title = (
        f"{found.preset}: batches of {found.batch_size} (scoring: {found.scoring_batch_size}), {found.threads} threads; assumed: "
        f"{a['images']} images, {a['classes']} class{'' if a['classes'] == 1 else 'es'} a task, bases of {100 * a['rank_share']:g} % of the width"
    )
    lines = [format_table(rows, digits=1, title=title)]
    needs = ", ".join(f"{name} {size / 2**20:.1f}" for name, size in found.workspace.items())
    lines.append(f"\nof the workspace: {needs} MiB")
    lines.append(f"a checkpoint after a task: {found.checkpoint / 2**20:.1f} MiB")
    step, later, image = (found.flops[what] / 1e9 for what in ("step", "increment", "image"))
    lines.append(f"products: {step:.1f} GFLOP a training step ({later:.1f} in a later task), {image:.1f} an image scored")
    if found.seconds:
        step, task, image = found.seconds["step"], found.seconds["task"] / 3600, found.seconds["image"]
        lines.append(f"estimated: {step:.3g} s a step, {task:.2g} h a first task, {image:.3g} s an image scored")
    layers = [
        {
            "weight": layer.name,
            "shape": list(layer.shape),
            "MiB": layer.bytes / 2**20,
            "width": layer.width,
            "stream": layer.method or "none",
            "stream MiB": None if layer.stream_bytes is None else layer.stream_bytes / 2**20,
        }
        for layer in found.layers
    ]
    if layers:
        lines.append(format_table(layers, digits=1, title="\nThe largest weights:"))
    return "\n".join(lines)


def _profile(arguments: argparse.Namespace) -> int:
    config = _config(arguments)
    run = profile_training if arguments.train else profile_prediction
    result = run(config, repeats=arguments.repeats)
    rows = [cost.row(result.seconds, result.peak) for cost in result.ops]
    known = sum(cost.seconds for cost in result.ops)
    rows.append({"op": "(between nodes)", "ms": 1e3 * (result.seconds - known), "share %": 100 * (1 - known / result.seconds)})
    what = "training step" if arguments.train else "prediction of a batch"
    print(format_table(rows, digits=1, title=f"{config.preset}: a {what}, {1e3 * result.seconds:.1f} ms, {_core.get_threads()} threads"))
    nodes = [cost.row(result.seconds, result.peak) for cost in result.nodes[: arguments.rows]]
    print(format_table(nodes, digits=1, title="\nThe slowest nodes, as op, output's shape, weight:"))
    planned = ", ".join(f"{name} {size / 2**20:.1f}" for name, size in result.planned.items())
    print(f"\npeak: {result.peak / 1e9:.0f} GFLOP/s by NumPy's matrix product")
    print(f"memory in MiB: planned {planned}; the process grew by {result.measured / 2**20:.1f}")
    if arguments.trace:
        result.write_trace(arguments.trace)
    if arguments.json:
        kind = "train" if arguments.train else "predict"
        records = [
            {
                "name": f"profile_{config.preset}_{kind}_{cost.name}",
                "value": cost.flops / cost.seconds / 1e9,
                "unit": "GFLOP/s",
                "peer": "NumPy's matrix product",
                "peer_value": result.peak / 1e9,
                "ratio": cost.flops / cost.seconds / result.peak,
                "command": shlex.join(["cdad", *sys.argv[1:]]),
            }
            for cost in result.ops
            if cost.flops and cost.seconds
        ]
        write_atomically(arguments.json, (json.dumps(records, indent=1) + "\n").encode())
    return 0


def _info(arguments: argparse.Namespace) -> int:
    print(f"cdad {__version__}")
    for key, value in _core.build_info().items():
        print(f"  {key}: {', '.join(value) if isinstance(value, list) else value}")
    print(f"  presets: {', '.join(PRESETS)}")
    return 0


def _set_device(arguments: argparse.Namespace) -> None:
    try:
        _core.set_device(arguments.device)
    except RuntimeError as error:
        if arguments.run is not _doctor:  # which says more of it
            raise
        print(f"{arguments.device}: {error}\n")


def _doctor(arguments: argparse.Namespace) -> int:
    print(f"cdad {__version__}, device {_core.get_device()}")
    if arguments.device is None:  # the environment's
        try:
            _core.Params(_core.get_device())
        except (RuntimeError, ValueError) as error:
            print(f"CDAD_DEVICE: {error}")
    found = describe_cuda()
    for what, there, text in found:
        print(f"  {'found  ' if there else 'missing'}  {what}: {text}")
    usable = all(there for _, there, _ in found)
    print("  cuda can be used" if usable else "  cuda cannot be used; everything runs on the CPU")
    return 0
