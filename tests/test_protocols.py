"""Protocols: the paper's class lists, free-form tasks, and what is refused."""

from __future__ import annotations


import pytest
from paths import REAL, needs_real_images

from cdad.data import PRODUCTS, list_classes
from cdad.errors import DataError
from cdad.protocols import PROTOCOLS, Protocol, protocol

MVTEC_BASE = "bottle cable capsule carpet grid hazelnut leather metal_nut pill screw".split()
MVTEC_REST = "tile toothbrush transistor wood zipper".split()
VISA_BASE = "candle capsules cashew chewinggum fryum macaroni1 macaroni2 pcb1".split()
VISA_REST = "pcb2 pcb3 pcb4 pipe_fryum".split()
MVTEC, VISA = MVTEC_BASE + MVTEC_REST, VISA_BASE + VISA_REST


@pytest.mark.parametrize(
    "name,tasks",
    [
        ("mvtec-14-1", [MVTEC[:14], ["zipper"]]),
        ("mvtec-10-5", [MVTEC_BASE, MVTEC_REST]),
        ("mvtec-3x5", [MVTEC[i : i + 3] for i in range(0, 15, 3)]),
        ("mvtec-10-1x5", [MVTEC_BASE, *([c] for c in MVTEC_REST)]),
        ("visa-11-1", [VISA[:11], ["pipe_fryum"]]),
        ("visa-8-4", [VISA_BASE, VISA_REST]),
        ("visa-8-1x4", [VISA_BASE, *([c] for c in VISA_REST)]),
        ("mvtec-visa", [MVTEC, VISA]),
        ("visa-mvtec", [VISA, MVTEC]),
        ("real-5", [["bottle", "pill", "screw"], ["toothbrush"], ["transistor"]]),
        (
            "real-12",
            [
                ["bottle", "pill", "screw", "magnetic_tile"],
                ["toothbrush", "transistor"],
                ["metal_plate", "tire"],
                ["tile", "wood"],
                ["wood_board", "nanofibre"],
            ],
        ),
        ("real-6x1", [[c] for c in "bottle pill magnetic_tile transistor wood_board metal_plate".split()]),
    ],
)
def test_settings(name, tasks):
    assert protocol(name).tasks == tuple(map(tuple, tasks))
    assert PROTOCOLS[name].name == name


def test_demo_fits_the_synthetic_products():
    demo = protocol("demo", PRODUCTS)
    assert [len(task) for task in demo.tasks] == [3, 1, 1, 1]
    assert sorted(demo.classes) == sorted(PRODUCTS)


def test_seen_is_cumulative():
    p = protocol("a,b/c/d")
    assert [p.seen(k) for k in range(3)] == [("a", "b"), ("a", "b", "c"), ("a", "b", "c", "d")]
    assert p.classes == p.seen(2)
    for task in (-1, 3):
        with pytest.raises(IndexError, match="tasks 0..2"):
            p.seen(task)


def test_free_form():
    assert protocol(" a , b/c/ d ").tasks == (("a", "b"), ("c",), ("d",))
    assert protocol("bottle", ["bottle", "pill"]).tasks == (("bottle",),)
    assert protocol("each", ["b", "a"]).tasks == (("b",), ("a",))
    for p in PROTOCOLS.values():
        assert protocol(str(p)).tasks == p.tasks
    with pytest.raises(ValueError, match="needs the classes"):
        protocol("each")


@pytest.mark.parametrize(
    "text,message",
    [
        ("a,b/c,a", "class 'a' is in task 1 and again in task 2"),
        ("a,a", "class 'a' is in task 1 and again in task 1"),
        ("a//b", "task 2 is empty"),
        ("a/", "task 2 is empty"),
        ("/a", "task 1 is empty"),
        ("a,,b", "task 1 has a class without a name"),
        ("mvtec-10-4", "no protocol 'mvtec-10-4'; did you mean 'mvtec-10-5'"),
        ("", "no protocol ''; known: mvtec-14-1"),
    ],
)
def test_refusals(text, message):
    with pytest.raises(DataError, match=message):
        protocol(text)


def test_a_protocol_without_tasks_is_refused():
    with pytest.raises(DataError, match="no tasks"):
        Protocol("none", ())
    with pytest.raises(DataError, match="no tasks"):
        protocol("each", [])


def test_classes_are_held_against_the_data():
    assert protocol("mvtec-10-5", MVTEC[::-1]).tasks == PROTOCOLS["mvtec-10-5"].tasks
    with pytest.raises(DataError, match="no class 'metal_nut' in the data; did you mean 'metalnut'"):
        protocol("mvtec-10-5", [c.replace("_", "") for c in MVTEC])
    with pytest.raises(DataError, match="no class 'tooth_brush' in the data; did you mean 'toothbrush'"):
        protocol("bottle/tooth_brush", ["bottle", "toothbrush"])
    with pytest.raises(DataError, match="no class 'cable' in the data; known: bottle, grid"):  # not near enough to be meant
        protocol("mvtec-3x5", ["bottle", "grid"])
    with pytest.raises(DataError, match="no class 'xyz' in the data; known: bottle, pill"):
        protocol("bottle/xyz", ["bottle", "pill"])
    with pytest.raises(DataError, match="no protocol 'botle'; did you mean 'bottle'"):
        protocol("botle", ["bottle", "pill"])


@needs_real_images
@pytest.mark.parametrize("name", ["real-5", "real-12", "real-6x1"])
def test_real_protocols_fit_the_real_data(name):
    assert protocol(name, list_classes(REAL)).name == name
