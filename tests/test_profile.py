"""The profile: events, their counts of operations and bytes, and the command."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cdad import _core, preset
from cdad.cli import main
from cdad.profile import profile_prediction, profile_training


def events(build) -> dict[str, tuple]:
    """The last event of every op of the graph that ``build`` makes, run with ones."""
    graph = _core.Graph()
    outputs, inputs = build(graph)
    program = graph.compile(outputs)
    _core.profile_start()
    program.run({value: np.ones(graph.shape(value), np.float32) for value in inputs})
    return {event[0]: event for event in _core.profile_stop()}


def test_operations_and_bytes_of_a_convolution_and_its_gradients():
    def build(graph):
        x, w, y = graph.input("x", (2, 9, 7, 5)), graph.param("w", (6, 3, 3, 5)), graph.input("y", (2, 5, 4, 6))
        (out,) = graph.op("conv2d", [x, w], stride=2, pad_t=1, pad_l=1, pad_b=1, pad_r=1)
        loss = graph.op("mse", [out, y])[0]
        return graph.backward(loss, [x, w]), [x, w, y]

    found = events(build)
    work = 2.0 * (2 * 5 * 4 * 6) * (3 * 3 * 5)
    for op in ("conv2d", "conv2d_grad_input", "conv2d_grad_weight"):
        assert found[op][5] == work, op
    assert found["mse_grad"][5] == 0
    assert found["conv2d"][1:3] == ("w", "[2,5,4,6]")
    assert found["conv2d"][6] == 4 * (2 * 9 * 7 * 5 + 6 * 3 * 3 * 5 + 2 * 5 * 4 * 6)
    assert found["conv2d"][4] > 0 and found["conv2d_grad_weight"][3] > found["conv2d"][3]


def test_operations_of_attention():
    def build(graph):
        q, k, v = graph.input("q", (3, 8, 12)), graph.input("k", (3, 5, 12)), graph.input("v", (3, 5, 12))
        return list(graph.op("attention", [q, k, v], heads=2)[:1]), [q, k, v]

    assert events(build)["attention"][5] == 2 * 2.0 * 3 * 8 * 5 * 12


def test_nothing_is_kept_unless_asked_for():
    _core.profile_start()
    assert _core.profile_stop() == []
    graph = _core.Graph()
    x = graph.input("x", (4,))
    graph.compile(list(graph.op("silu", [x]))).run({x: np.ones(4, np.float32)})
    _core.profile_start()
    assert _core.profile_stop() == []


@pytest.mark.parametrize("run", [profile_training, profile_prediction])
def test_the_nodes_explain_the_time(run):
    result = run(preset("tiny").updated({"scoring.backbone": "autoencoder"}), repeats=2)
    known = sum(cost.seconds for cost in result.ops)
    assert 0.3 * result.seconds < known < 1.05 * result.seconds
    assert known == pytest.approx(sum(cost.seconds for cost in result.nodes), rel=0.25)
    assert sum(c.calls for c in result.ops) == sum(c.calls for c in result.nodes) == len(result.events)
    assert ("optimizer" in {c.name for c in result.ops}) == (run is profile_training)
    # The DCT has no weights, and its features are the backbone; nothing is projected, nor averaged.
    assert all(result.planned[name] > 0 for name in result.planned.keys() - {"autoencoder", "backbone", "update", "average"})
    assert result.peak > 1e9
    training = {"workspace", "update", "parameters", "gradients", "moments", "average"}
    prediction = {"parameters", "workspace", "condition", "autoencoder", "backbone"}
    assert set(result.planned) == (training if run is profile_training else prediction)


def test_command(tmp_path, capsys):
    trace, records = tmp_path / "trace.json", tmp_path / "records.json"
    arguments = ["profile", "--preset", "tiny", "--train", "--repeats", "1", "--set", "training.batch_size=2"]
    assert main([*arguments, "--trace", str(trace), "--json", str(records)]) == 0
    shown = capsys.readouterr().out
    assert "conv2d_grad_weight" in shown and "planned workspace" in shown
    found = json.loads(trace.read_text())["traceEvents"]
    assert found[-1]["name"] == "optimizer" and found[0]["ts"] == 0
    assert all(a["ts"] + a["dur"] <= b["ts"] + 1 for a, b in zip(found, found[1:], strict=False))
    assert {"name", "value", "unit", "peer", "peer_value", "ratio", "command"} == set(json.loads(records.read_text())[0])
    assert main(["profile", "--preset", "tiny", "--repeats", "0"]) == 1
    assert "repeats" in capsys.readouterr().err
