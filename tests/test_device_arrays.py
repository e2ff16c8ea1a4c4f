"""Memory of a device that other libraries share: DLPack and __cuda_array_interface__, in and out, and what takes it.

The emulated device stands for any: its arrays go through capsules like CUDA's, and what is freed is counted. CUDA's streams and
__cuda_array_interface__ are tried where CUDA's kernels were built for the CPU (test_devices.ON_HOST), whose memory is the host's.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import threading

import numpy as np
import pytest
from test_devices import ON_HOST

from cdad import ContinualModel, DeviceArray, _core, preset
from cdad.autoencoder import Autoencoder
from cdad.features import FeatureDistance

PLAIN, VERSIONED = b"dltensor", b"dltensor_versioned"
READ_ONLY, IS_COPIED = 1, 2

x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


class Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        *((name, ctypes.c_int32) for name in ("device_type", "device_id", "ndim")),
        *((name, ctypes.c_uint8) for name in ("code", "bits")),
        ("lanes", ctypes.c_uint16),
        *((name, ctypes.POINTER(ctypes.c_int64)) for name in ("shape", "strides")),
        ("byte_offset", ctypes.c_uint64),
    )


Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)  # called without the GIL


class Plain(ctypes.Structure):
    _fields_ = (("tensor", Tensor), ("manager", ctypes.c_void_p), ("deleter", Deleter))


class Versioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager", ctypes.c_void_p),
        ("deleter", Deleter),
        ("flags", ctypes.c_uint64),
        ("tensor", Tensor),
    )


def python(name, result, *arguments):
    function = getattr(ctypes.pythonapi, name)
    function.restype, function.argtypes = result, arguments
    return function


capsule_new = python("PyCapsule_New", ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
capsule_pointer = python("PyCapsule_GetPointer", ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)
capsule_name = python("PyCapsule_GetName", ctypes.c_char_p, ctypes.py_object)
capsule_rename = python("PyCapsule_SetName", ctypes.c_int, ctypes.py_object, ctypes.c_char_p)


def opened(capsule) -> Plain | Versioned:
    """What a capsule holds; the capsule is to be kept."""
    name = capsule_name(capsule)
    return (Versioned if name == VERSIONED else Plain).from_address(capsule_pointer(capsule, name))


def address(array: DeviceArray) -> int:
    capsule = array.__dlpack__()
    return opened(capsule).tensor.data


LOANS: dict[int, tuple[Plain | Versioned, Lender]] = {}  # by address


@Deleter
def give_back(managed: int) -> None:
    LOANS.pop(managed)[1].given_back.append(threading.get_ident())


class Lender:
    """Another library, that lends the memory of `array`. ``changes`` are made to its tensors, ``major`` and ``flags`` to the
    versioned ones, of which it may know nothing."""

    def __init__(self, array: DeviceArray, versioned: bool = True, major: int = 1, flags: int = 0, **changes):
        self.array, self.versioned, self.major, self.flags, self.changes = array, versioned, major, flags, changes
        self.asked, self.given_back = [], []

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()

    def __dlpack__(self, **how):
        if not self.versioned and "max_version" in how:
            raise TypeError("unexpected keyword argument 'max_version'")
        self.asked.append(how)
        sizes = ctypes.c_int64 * len(self.array.shape)
        strides = [int(np.prod(self.array.shape[i + 1 :])) for i in range(len(self.array.shape))]
        dims = self.changes.get("shape", self.array.shape)
        tensor = Tensor(address(self.array), *self.__dlpack_device__(), len(dims), 2, 32, 1, sizes(*dims), sizes(*strides), 0)
        for name, value in self.changes.items():
            setattr(tensor, name, sizes(*value) if name in ("shape", "strides") and value else value)
        if self.versioned:
            managed = Versioned(self.major, 3, None, give_back, self.flags, tensor)
        else:
            managed = Plain(tensor, None, give_back)
        LOANS[ctypes.addressof(managed)] = managed, self
        self.capsule = capsule_new(ctypes.addressof(managed), VERSIONED if self.versioned else PLAIN, None)
        return self.capsule


def used() -> int:
    return _core.device_memory("emulated")["used"]


@pytest.fixture(autouse=True)
def there():
    """x on the emulated device, of which all that a test takes is given back."""
    array = DeviceArray(x, "emulated")
    before = used()
    yield array
    LOANS.clear()  # those that were refused
    if used() > before:
        gc.collect()  # models have cycles
    assert used() <= before


def test_of_the_host_and_back(there):
    assert there.shape == x.shape and there.dtype == np.float32 and there.device == "emulated" and len(there) == 2
    assert repr(there) == "<DeviceArray [2,3,4] on emulated>"
    copies = there.numpy(), np.asarray(there), np.array(there, copy=True), np.asarray(there, np.float64)
    for copy, dtype in zip(copies, "fffd", strict=True):
        assert np.array_equal(copy, x) and copy.dtype.char == dtype
    with pytest.raises(ValueError, match="by a copy alone"):
        np.array(there, copy=False)


def test_what_is_of_the_host():
    torch = pytest.importorskip("torch")
    for given in (x.tolist(), x.astype(np.float64), x[..., ::2].repeat(2, -1), torch.from_numpy(x), np.asfortranarray(x)):
        given = np.asarray(given, np.float32) if isinstance(given, list) else given
        assert np.array_equal(DeviceArray(given, "emulated").numpy(), np.asarray(given))
        assert _core.as_device_array(given) is None
    for given in (x.astype(np.int32), torch.zeros(2, dtype=torch.float16)):
        with pytest.raises(TypeError, match="float32"):
            DeviceArray(given, "emulated")
    with pytest.raises(ValueError, match="empty dimension"):
        DeviceArray(x[:0], "emulated")
    with pytest.raises(ValueError, match="the name of a device is wanted"):
        DeviceArray(x, "cpu")


def test_parts_share_the_memory():
    there = DeviceArray(x, "emulated")
    flat, part = there.reshape(24), there[1:]
    assert address(flat) == address(there) == address(part) - 12 * 4
    assert np.array_equal(part.numpy(), x[1:]) and np.array_equal(there[:5].numpy(), x)
    joined = DeviceArray.join([part, there, there[:1]])
    del there, flat  # the part keeps it
    assert np.array_equal(part.numpy(), x[1:])
    assert np.array_equal(joined.numpy(), np.concatenate([x[1:], x, x[:1]]))
    for wrong, error in ((0, TypeError), (slice(0, 1, 2), ValueError), (slice(2, 2), ValueError)):
        with pytest.raises(error, match="cut"):
            part[wrong]
    with pytest.raises(ValueError, match="not as many elements"):
        part.reshape(13)
    for wrong, error in (([], ValueError), ([part, part.reshape(12)], ValueError), ([part, x], TypeError)):
        with pytest.raises(error, match="join"):
            DeviceArray.join(wrong)
    with pytest.raises(TypeError, match="no length"):
        len(part[:1].reshape(12)[:1].reshape(()))


def test_parts_are_written(there):
    flat = there.reshape(24)
    flat[:6] = np.arange(6, dtype=np.float64)
    flat[6:12] = DeviceArray(np.full(6, 7, np.float32), "emulated")
    flat[1:9] = flat[0:8]  # they overlap
    wanted = np.concatenate([[0, 0, 1, 2, 3, 4, 5, 7, 7, 7, 7, 7], x.reshape(24)[12:]])
    assert np.array_equal(there.numpy().reshape(24), wanted)
    for part, given, error, message in (
        (slice(0, 2), np.zeros(3, np.float32), ValueError, r"what is assigned has shape \[3\]; \[2\] is wanted"),
        (slice(0, 2), flat[:3], ValueError, r"what is assigned has shape \[3\]; \[2\] is wanted"),
        (slice(0, 2), np.zeros(2, np.int32), TypeError, "float32"),
        (0, np.float32(1), TypeError, "cut by a slice"),
        (slice(3, 3), np.zeros(0, np.float32), ValueError, "not empty"),
    ):
        with pytest.raises(error, match=message):
            flat[part] = given
    with pytest.raises(TypeError, match="cannot be deleted"):
        del flat[:2]
    read_only = DeviceArray(Lender(there, flags=1))
    with pytest.raises(ValueError, match="read-only"):
        read_only[:1] = x[:1]
    assert np.array_equal(there.numpy().reshape(24), wanted)


@pytest.mark.parametrize("versioned", [True, False])
def test_lent_and_given_back(there, versioned):
    lender = Lender(there, versioned)
    taken = DeviceArray(lender)
    assert lender.asked == [{"stream": None} | ({"max_version": (1, 0)} if versioned else {})]
    assert capsule_name(lender.capsule) == b"used_" + (VERSIONED if versioned else PLAIN)
    assert address(taken) == address(there) and taken.shape == x.shape
    part = taken[1:]
    del taken
    assert not lender.given_back
    assert np.array_equal(part.numpy(), x[1:])
    del part
    assert len(lender.given_back) == 1


def test_an_array_without_strides_or_with_an_offset(there):
    taken = DeviceArray(Lender(there, strides=None))
    assert np.array_equal(taken.numpy(), x)
    taken = DeviceArray(Lender(there, shape=(1, 3, 4), strides=(99, 4, 1), byte_offset=48))  # a stride of one element is none
    assert np.array_equal(taken.numpy(), x[1:])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"bits": 64}, TypeError, "float32, not float64"),
        ({"bits": 16}, TypeError, "float32, not float16"),
        ({"code": 4, "bits": 16}, TypeError, "float32, not bfloat16"),
        ({"code": 0}, TypeError, "float32, not int32"),
        ({"code": 99}, TypeError, "an unknown type"),
        ({"lanes": 4}, TypeError, "in vectors"),
        ({"strides": (12, 1, 3)}, ValueError, "contiguous"),
        ({"strides": (0, 4, 1)}, ValueError, "contiguous"),
        ({"shape": (0, 3, 4)}, ValueError, "empty"),
        ({"shape": (2, -3, 4)}, ValueError, "empty"),
        ({"ndim": 7}, ValueError, "at most 5"),
        ({"ndim": -1}, ValueError, "at most 5"),
        ({"data": None}, ValueError, "no memory of emulated"),
        ({"device_id": 1}, ValueError, "no memory of emulated"),
        ({"device_type": 2}, ValueError, "no memory of emulated"),
        ({"major": 2}, BufferError, "version 2"),
    ],
)
def test_what_is_refused_stays_with_its_lender(there, changes, error, message):
    lender = Lender(there, **changes)
    with pytest.raises(error, match=message):
        DeviceArray(lender)
    assert capsule_name(lender.capsule) == VERSIONED and not lender.given_back


class Given:
    def __init__(self, capsule, device=(12, 0)):
        self.capsule, self.device = capsule, device

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, **how):
        return self.capsule


def test_a_capsule_is_used_once(there):
    for version in ((1, 0), None):
        capsule = there.__dlpack__(max_version=version)
        taken = DeviceArray(Given(capsule))
        assert address(taken) == address(there)
        with pytest.raises(ValueError, match="no capsule that holds a tensor still"):
            DeviceArray(Given(capsule))
        with pytest.raises(ValueError, match="no capsule"):
            DeviceArray(Given(3))


@pytest.mark.parametrize("device", [(1, 3, 4), "x", (10, 0), (12, 5), (16, 0)])
def test_other_devices(device):
    with pytest.raises((ValueError, TypeError), match="neither the host's nor a CUDA device's|argument|integer"):
        DeviceArray(Given(None, device))


def test_other_places(there):
    assert DeviceArray(there) is there and DeviceArray(there, "emulated") is there
    with pytest.raises(ValueError, match="x lies on emulated, not on 'cpu'"):
        DeviceArray(there, "cpu")
    with pytest.raises(BufferError, match="shared there"):
        there.__dlpack__(dl_device=(2, 0))
    with pytest.raises(BufferError, match="by a copy alone"):
        there.__dlpack__(dl_device=(1, 0), copy=False)
    host = DeviceArray.__dlpack__(there, dl_device=(1, 0))
    assert opened(host).tensor.device_type == 1
    assert np.array_equal(np.from_dlpack(Given(host, (1, 0))), x)


def test_what_a_capsule_says(there):
    plain = opened(kept := there.__dlpack__())
    assert isinstance(plain, Plain)
    versioned = opened(kept_too := there.__dlpack__(max_version=(1, 3), copy=False))
    assert isinstance(versioned, Versioned) and (versioned.major, versioned.flags) == (1, 0)
    for tensor in (plain.tensor, versioned.tensor):
        assert (tensor.device_type, tensor.device_id, tensor.ndim, tensor.byte_offset) == (12, 0, 3, 0)
        assert (tensor.code, tensor.bits, tensor.lanes) == (2, 32, 1)
        assert tensor.shape[:3] == [2, 3, 4] and tensor.strides[:3] == [12, 4, 1]
    copied = opened(kept_last := there.__dlpack__(max_version=(1, 0), copy=True))
    assert copied.flags == IS_COPIED and copied.tensor.data != plain.tensor.data
    del kept, kept_too
    assert np.array_equal(DeviceArray(Given(kept_last)).numpy(), x)


def test_what_is_read_only_says_so(there):
    taken = DeviceArray(Lender(there, flags=READ_ONLY))
    for array in (taken, taken[1:], taken.reshape(24)):
        capsule = array.__dlpack__(max_version=(1, 0))
        assert opened(capsule).flags == READ_ONLY
        with pytest.raises(BufferError, match="read-only"):
            array.__dlpack__()
    capsule = taken.__dlpack__(copy=True)
    assert np.array_equal(DeviceArray(Given(capsule)).numpy(), x)


def test_streams(there):
    """The emulated device has those that any has, and tells of others."""
    for stream in (None, -1, 1, 2):
        there.__dlpack__(stream=stream)
    with pytest.raises(ValueError, match="there is no stream 0x7"):
        there.__dlpack__(stream=7)
    for stream in (0, -2):
        with pytest.raises(ValueError, match=f"there is no stream {stream}"):
            there.__dlpack__(stream=stream)
    for stream, error in (("1", TypeError), (2**70, OverflowError)):
        with pytest.raises(error):
            there.__dlpack__(stream=stream)


def test_a_borrower_keeps_the_memory_and_gives_it_back_in_any_thread():
    there = DeviceArray(x, "emulated")
    before = used()
    capsule = there.__dlpack__(max_version=(1, 0))
    borrowed = opened(capsule)
    pointer = capsule_pointer(capsule, VERSIONED)
    capsule_rename(capsule, b"used_dltensor_versioned")
    del there, capsule
    assert used() == before
    thread = threading.Thread(target=borrowed.deleter, args=(pointer,))
    thread.start()
    thread.join()
    assert used() == before - x.nbytes


def test_a_thousand_times(there):
    lenders = [Lender(there), Lender(there, versioned=False), Lender(there, lanes=2)]
    bytes_before = used()

    def once():
        for lender in lenders[:2]:
            taken = DeviceArray(lender)
            taken.__dlpack__(), taken[1:].__dlpack__(max_version=(1, 0), copy=True)
            DeviceArray(Given(taken.__dlpack__()))
            assert _core.as_device_array(taken) is taken
            del taken
        with pytest.raises(TypeError):
            DeviceArray(lenders[2])
        with pytest.raises(ValueError, match="cut"):
            there[3:]
        LOANS.clear()
        assert [len(lender.given_back) for lender in lenders] == [1, 1, 0]
        for lender in lenders:
            lender.asked.clear(), lender.given_back.clear()

    for _ in range(100):
        once()
    gc.collect()
    objects = [there, *lenders, (1, 0), DeviceArray]
    references = [sys.getrefcount(o) for o in objects]
    blocks = sys.getallocatedblocks()
    for _ in range(1000):
        once()
    gc.collect()
    assert [sys.getrefcount(o) for o in objects] == references
    assert used() == bytes_before
    assert sys.getallocatedblocks() < blocks + 500


# ---- what takes it ------------------------------------------------------------------------------------------


def doubled(shape, device="emulated"):
    graph = _core.Graph()
    value = graph.input("x", shape)
    return graph.compile(graph.op("affine", [value], a=2.0), device), value


def test_a_program(there):
    program, value = doubled(x.shape)
    (result,) = program.run({value: there})
    assert isinstance(result, DeviceArray) and np.array_equal(result.numpy(), 2 * x)
    (again,) = program.run({value: Lender(result)})
    assert np.array_equal(again.numpy(), 4 * x) and np.array_equal(result.numpy(), 2 * x)
    assert isinstance(program.run({value: x})[0], np.ndarray)
    with pytest.raises(ValueError, match="nothing is bound to x"):
        program.run({})
    with pytest.raises(ValueError, match=r"x has shape \[24\]; \[2,3,4\] is wanted"):
        program.run({value: there.reshape(24)})
    on_host, value = doubled(x.shape, "cpu")
    with pytest.raises(ValueError, match="x lies on emulated, what reads it on cpu"):
        on_host.run({value: there})


def test_arrays_that_take_themselves_away():
    """While they are asked where they lie, nothing but the call keeps them."""

    class Fleeting:
        def __init__(self, home):
            self.home = home

        def __dlpack_device__(self):
            self.home.clear()
            return (1, 0)

        def __array__(self, dtype=None, copy=None):
            return x

    program, value = doubled(x.shape, "cpu")
    feeds = {}
    feeds[value] = Fleeting(feeds)
    assert np.array_equal(program.run(feeds)[0], 2 * x) and not feeds


def decoder(params: _core.Params) -> _core.Network:
    return _core.Network(params, "tiny_decode", {"channels": 8, "latent_channels": 4, "midblock": 0}, 1, (2, 2))


def test_weights_are_shared():
    params = _core.Params("emulated")
    network = decoder(params)
    with pytest.raises(ValueError, match="not allocated"):
        params.device_array(next(iter(params.shapes())))
    params.allocate(0)
    name = next(iter(params.shapes()))
    weight = params.device_array(name)
    assert np.array_equal(weight.numpy(), params[name]) and address(weight) == address(params.device_array(name))
    params[name] = 0.0 * params[name]
    assert not weight.numpy().any()
    del params, network
    assert not weight.numpy().any()  # it keeps them
    with pytest.raises(KeyError):
        _core.Params("emulated").device_array("none")
    planned = _core.Params("planned")
    decoder(planned)
    planned.allocate(0)
    with pytest.raises(BufferError, match="only planned"):
        planned.device_array(name).__dlpack__()
    here = _core.Params("cpu")
    decoder(here)
    here.allocate(0)
    with pytest.raises(ValueError, match="of the host"):
        here.device_array(name)


def close(got: DeviceArray, want: np.ndarray, tolerance: float = 1e-5) -> bool:
    assert isinstance(got, DeviceArray) and got.shape == want.shape
    return np.abs(got.numpy() - want).max() <= tolerance * np.abs(want).max()


@pytest.mark.parametrize("kind", ["dct", "tiny", "vae"])
def test_an_autoencoder_and_its_features(kind):
    config = {
        "dct": {"latent_channels": 16},
        "tiny": {"channels": 16, "latent_channels": 4},
        "vae": {"channels": 32, "latent_channels": 4, "shift_scale": 0.2},
    }
    sizes = {"kind": kind, "weights": [], "shift_scale": "standardize"} | config[kind]
    settings = preset("tiny").updated({f"autoencoder.{name}": value for name, value in sizes.items()}).autoencoder
    autoencoder = Autoencoder(settings, 16, 2, load=False, device="emulated")
    features = FeatureDistance("autoencoder", autoencoder, 16, 2)
    features.mean, features.std = np.float32([0.4, 0.5, 0.6]), np.float32([0.2, 0.25, 0.3])
    images = np.random.default_rng(0).random((3, 16, 16, 3), np.float32)
    autoencoder.measure(images)
    there = Lender(DeviceArray(images, "emulated"))
    z = autoencoder.encode(images)
    assert close(autoencoder.encode(there), z)
    decoded = autoencoder.decode(3.0 * z)  # where some pixels are cut
    cut = autoencoder.decode(Lender(DeviceArray(3.0 * z, "emulated")))
    assert close(cut, decoded) and cut.numpy().min() >= 0.0 and cut.numpy().max() <= 1.0
    for got, want in zip(features.extract(there), features.extract(images), strict=True):
        assert close(got, want)
    want = features(images, decoded)
    for a, b in ((there, cut), (images, cut)):
        assert np.allclose(features(a, b), want, rtol=1e-4, atol=1e-4 * np.abs(want).max())


def test_predictions_of_images_on_the_device(first_checkpoint, monkeypatch):
    """Scores as of the same images of the host; what goes there is latents, distances and reconstructions."""
    model = ContinualModel.load(first_checkpoint, device="emulated")
    size = model.config.image_size
    images = np.random.default_rng(0).random((3, size, size, 3), np.float32)
    want = model.predict(images)
    downloaded, array = [], DeviceArray.__array__

    def download(self, *args, **kwargs):
        downloaded.append(self.shape)
        return array(self, *args, **kwargs)

    monkeypatch.setattr(DeviceArray, "__array__", download)
    got = model.predict(Lender(DeviceArray(images, "emulated")))
    assert downloaded.count(images.shape) == 1  # the reconstructions
    assert not any(shape[1:] == images.shape[1:] for shape in downloaded if shape != images.shape)
    for name in ("scores", "maps", "reconstructions"):
        a, b = getattr(got, name), getattr(want, name)
        assert isinstance(a, np.ndarray) and np.allclose(a, b, rtol=1e-3, atol=1e-4)
    one = model.predict(DeviceArray(images, "emulated")[:1].reshape(images.shape[1:]))
    assert np.allclose(one.maps, want.maps[:1], rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="is wanted"):
        model.predict(DeviceArray(images[:, :8], "emulated"))
    with pytest.raises(ValueError, match="lies on emulated, what reads it on cpu"):
        ContinualModel.load(first_checkpoint, device="cpu").predict(DeviceArray(images, "emulated"))


# ---- CUDA's numbers and streams -----------------------------------------------------------------------------


class Interface:
    """A library without DLPack, with memory of the host."""

    def __init__(self, array: np.ndarray, **changes):
        self.array = array
        interface = {"shape": array.shape, "typestr": "<f4", "data": (array.ctypes.data, False), "version": 3}
        self.__cuda_array_interface__ = interface | changes


@pytest.fixture
def cuda():
    if os.environ.get("CDAD_CUDA_LIBRARY") != str(ON_HOST):
        pytest.skip("CUDA's memory is not the host's: a GPU is there, or build_cuda_on_host was not run")
    return "cuda:0"


def test_cuda_array_interface(cuda):
    lender = Interface(x.copy(), strides=None, stream=1)
    taken = DeviceArray(lender)
    assert taken.device == cuda and taken.__dlpack_device__() == (2, 0)
    interface = taken.__cuda_array_interface__
    assert interface == Interface(lender.array, strides=None, stream=1).__cuda_array_interface__
    references = sys.getrefcount(lender)
    part = taken[1:]
    del taken
    assert sys.getrefcount(lender) == references
    lender.array[1] = 7.0
    assert (part.numpy() == 7.0).all()
    del part
    assert sys.getrefcount(lender) == references - 1
    assert DeviceArray(Interface(x, data=(x.ctypes.data, True))).__cuda_array_interface__["data"][1] is True
    program, value = doubled(x.shape, "cuda")
    for k in range(3):  # also where it is replayed
        assert np.array_equal(program.run({value: Interface(x + k, strides=(48, 16, 4))})[0].numpy(), 2 * (x + k))
    assert program.recorded
    assert not hasattr(DeviceArray(x, "emulated"), "__cuda_array_interface__")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"typestr": "<f8"}, TypeError, "not '<f8'"),
        ({"strides": (48, 4, 12)}, ValueError, "contiguous"),
        ({"strides": (48, 4)}, ValueError, "2 strides of 3"),
        ({"shape": (0, 3)}, ValueError, "empty"),
        ({"mask": x}, ValueError, "a mask"),
        ({"data": (0, False)}, ValueError, "no memory"),
        ({"data": None}, ValueError, "lacks"),
        ({"stream": 0}, ValueError, "no stream 0"),
        ({"stream": 7}, RuntimeError, "order of streams"),
    ],
)
def test_interfaces_that_are_refused(cuda, changes, error, message):
    with pytest.raises(error, match=message):
        DeviceArray(Interface(x, **changes))


def test_cuda_by_dlpack(cuda):
    there = DeviceArray(x, cuda)
    lender = Lender(there)
    taken = DeviceArray(lender, "cuda")
    assert lender.asked == [{"stream": 1, "max_version": (1, 0)}]
    assert address(taken) == there.__cuda_array_interface__["data"][0]
    for stream in (None, -1, 1, 2):
        there.__dlpack__(stream=stream)
    with pytest.raises(RuntimeError, match="order of streams"):
        there.__dlpack__(stream=7)
    with pytest.raises(ValueError, match="x lies on cuda:0"):
        DeviceArray(there, "emulated")


def test_what_is_written_into_a_weight_counts(cuda):
    params = _core.Params(cuda)
    decoder(params)
    params.allocate(0)
    name = next(iter(params.shapes()))
    data, _ = params.device_array(name).__cuda_array_interface__["data"]
    np.ctypeslib.as_array((ctypes.c_float * params[name].size).from_address(data))[:] = 3.0
    assert (params[name] == 3.0).all()


def test_torch_on_a_gpu():
    """Both ways on streams of torch's own, where one that does not wait would read what is not there yet."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch finds no GPU")
    n = 1 << 24
    program, value = doubled(n, "cuda")
    with torch.cuda.stream(torch.cuda.Stream()):
        lent = torch.zeros(n, device="cuda")
        for k in range(1, 4):
            torch.cuda._sleep(50_000_000)
            lent.fill_(k)
            taken = DeviceArray(lent)
            assert taken.__cuda_array_interface__["data"][0] == lent.data_ptr()
            (result,) = program.run({value: lent})
            borrowed = torch.from_dlpack(result)
            assert borrowed.data_ptr() == result.__cuda_array_interface__["data"][0]
            assert (borrowed == 2 * k).all()
            assert (torch.as_tensor(result, device="cuda") == 2 * k).all()
            del taken
