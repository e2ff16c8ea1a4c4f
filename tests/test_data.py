"""Images, data sets, perturbation and training batches: what is read, what is refused, what never varies."""

from __future__ import annotations

import io
import itertools
import os
import struct
import threading
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from cdad import data
from cdad.data import ClassData, Dataset, TrainingBatches, open_dataset, perturb, perturbation_rng, read_image
from cdad.errors import DataError, ImageError, LimitError

SHARED = Path(os.environ.get("CDAD_SHARED", Path(__file__).resolve().parents[1].parent / "shared"))
REAL = SHARED / "data"


def random_image(height=40, width=48, seed=0, channels=3):
    """Smooth noise, uint8 [H,W,C]: compresses without much loss and has gradients for Poisson editing."""
    grid = np.random.default_rng(seed).integers(0, 256, (6, 6, channels)).astype(np.uint8)
    return cv2.resize(grid, (width, height), interpolation=cv2.INTER_LINEAR).reshape(height, width, channels)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.squeeze(pixels))
    image.save(path, **options)
    return path


def png_chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def tiny_png_claiming(width, height):
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    body = png_chunk(b"IDAT", zlib.compress(b"\0" * 64))
    return b"\x89PNG\r\n\x1a\n" + header + body + png_chunk(b"IEND", b"")


class Bytes:
    """A path of bytes."""

    def __fspath__(self):
        return b"a.png"


class TestReadImage:
    @pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp"])
    def test_lossless_formats_keep_every_pixel(self, tmp_path, suffix):
        pixels = random_image()
        options = {"lossless": True, "exact": True} if suffix == "webp" else {}
        image = read_image(save(tmp_path / f"a.{suffix}", pixels, **options))
        assert image.dtype == np.float32 and image.flags.c_contiguous
        assert np.array_equal(image, pixels.astype(np.float32) / 255)

    def test_jpeg_and_content_over_name(self, tmp_path):
        pixels = random_image()
        path = save(tmp_path / "a.jpg", pixels, quality=95)
        assert np.abs(read_image(path) - pixels / 255).mean() < 0.02
        lying = tmp_path / "a.png"
        lying.write_bytes(path.read_bytes())
        assert np.array_equal(read_image(lying), read_image(path))

    def test_grey_and_one_bit_become_three_equal_channels(self, tmp_path):
        grey = random_image(channels=1)
        image = read_image(save(tmp_path / "g.png", grey))
        assert np.array_equal(image, np.repeat(grey / np.float32(255), 3, axis=2))
        bits = Image.fromarray(grey[..., 0] > 128)
        assert bits.mode == "1"
        assert np.array_equal(read_image(save(tmp_path / "b.png", bits))[..., 1], (grey[..., 0] > 128))

    def test_palette_alpha_and_colour_key_go_over_black(self, tmp_path):
        palette = Image.fromarray(random_image()).quantize(16)
        image = read_image(save(tmp_path / "p.png", palette))
        assert np.array_equal(image, np.asarray(palette.convert("RGB")) / np.float32(255))

        rgba = random_image(channels=4)
        expected = np.rint(rgba[..., :3] * (rgba[..., 3:] / 255)) / 255
        assert np.allclose(read_image(save(tmp_path / "a.png", rgba)), expected, atol=1e-6)

        image = read_image(save(tmp_path / "la.png", Image.fromarray(rgba[..., [0, 3]])))
        assert np.allclose(image[..., 2], expected[..., 0], atol=1e-6)

        keyed = np.full((4, 4, 3), 200, np.uint8)
        keyed[0] = 90
        image = read_image(save(tmp_path / "k.png", keyed, transparency=(200, 200, 200)))
        assert (image[1:] == 0).all() and np.allclose(image[0], 90 / 255)

    def test_cmyk(self, tmp_path):
        red = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
        assert np.array_equal(read_image(save(tmp_path / "c.tiff", red))[0, 0], (1, 0, 0))
        assert np.abs(read_image(save(tmp_path / "c.jpg", red))[0, 0] - (1, 0, 0)).max() < 0.02

    @pytest.mark.parametrize("suffix", [".png", ".tiff"])
    @pytest.mark.parametrize("channels", [1, 3, 4])
    def test_sixteen_bits_are_scaled_not_clipped(self, tmp_path, suffix, channels):
        pixels = np.random.default_rng(1).integers(0, 65536, (9, 7, channels)).astype(np.uint16)
        path = tmp_path / f"a{suffix}"
        path.write_bytes(cv2.imencode(suffix, pixels)[1].tobytes())
        expected = pixels[..., :3][..., ::-1] / 65535
        if channels == 4:
            expected = expected * (pixels[..., 3:] / 65535)
        assert np.abs(read_image(path) - expected).max() < 1.01 / 65535

    def test_truncated_sixteen_bit_colour_is_refused(self, tmp_path):
        pixels = np.random.default_rng(1).integers(0, 65536, (64, 64, 3)).astype(np.uint16)
        content = cv2.imencode(".png", pixels)[1].tobytes()
        (tmp_path / "a.png").write_bytes(content[: len(content) // 2])
        with pytest.raises(ImageError, match="truncated"):
            read_image(tmp_path / "a.png")

    def test_float_tiff_only_within_the_unit_interval(self, tmp_path):
        values = np.random.default_rng(0).random((6, 5)).astype(np.float32)
        assert np.array_equal(read_image(save(tmp_path / "f.tiff", values))[..., 0], values)
        for bad in (1.5, np.nan):
            values[0, 0] = bad
            with pytest.raises(ImageError, match="expected \\[0, 1\\]"):
                read_image(save(tmp_path / "g.tiff", values))
        with pytest.raises(ImageError, match="'I' is not supported"):
            read_image(save(tmp_path / "i.tiff", np.full((4, 4), 70000, np.int32)))

    @pytest.mark.parametrize("suffix", ["jpg", "png", "tiff"])
    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_exif_orientation(self, tmp_path, orientation, suffix):
        pixels = random_image(16, 24)
        exif = Image.Exif()
        exif[0x0112] = orientation
        options = {"quality": 100, "subsampling": 0} if suffix == "jpg" else {}
        path = save(tmp_path / f"a.{suffix}", pixels, exif=exif, **options)
        turned = {  # what each tag asks a viewer to do
            1: pixels, 2: np.fliplr(pixels), 3: np.rot90(pixels, 2), 4: np.flipud(pixels),
            5: np.transpose(pixels, (1, 0, 2)), 6: np.rot90(pixels, -1),
            7: np.rot90(np.transpose(pixels, (1, 0, 2)), 2), 8: np.rot90(pixels, 1),
        }[orientation]  # fmt: skip
        image = read_image(path)
        assert image.shape == turned.shape
        assert np.abs(image - turned / 255).max() < (0.03 if suffix == "jpg" else 1e-6)
        mask = np.zeros((16, 24), np.uint8)
        mask[2:5, 3:9] = 255
        if suffix != "jpg":
            upright = data.read_mask(save(tmp_path / f"m.{suffix}", mask, exif=exif))
            data.check_mask(image, upright)
            assert upright.sum() == 18

    def test_grey_mode_is_luma(self, tmp_path):
        pixels = random_image()
        image = read_image(save(tmp_path / "a.png", pixels), mode="grey")
        assert np.allclose(image, (pixels @ (0.299, 0.587, 0.114) / 255)[..., None], atol=1e-5)
        with pytest.raises(ValueError, match="mode is 'bgr'"):
            read_image(tmp_path / "a.png", mode="bgr")

    def test_resizing(self, tmp_path):
        pixels = random_image(40, 48)
        path = save(tmp_path / "a.png", pixels)
        quarters = pixels.reshape(10, 4, 12, 4, 3).mean(axis=(1, 3)) / 255
        assert np.allclose(read_image(path, size=(10, 12)), quarters, atol=1e-6)
        assert read_image(path, size=64).shape == (64, 64, 3)
        # One side shrinks, the other grows: the shrinking one is still averaged, not sampled.
        stripes = np.zeros((64, 8, 3), np.uint8)
        stripes[::4] = 255
        mixed = read_image(save(tmp_path / "s.png", stripes), size=(8, 32))
        assert np.allclose(mixed, 0.25, atol=0.01)
        # White stays white: the area filter's weights add up to 1.0000002 here.
        assert np.all(read_image(save(tmp_path / "w.png", np.full((129, 391, 3), 255, np.uint8)), size=128) <= 1)
        for bad in (0, -3, (4,), (4, 0), 2.5, 70000):
            with pytest.raises(ValueError, match="size is"):
                read_image(path, size=bad)

    def test_bombs_are_refused_by_their_header(self, tmp_path):
        path = tmp_path / "bomb.png"
        for side in (8_001, 65_500):
            path.write_bytes(tiny_png_claiming(side, side))
            with pytest.raises(LimitError, match="bomb.png.*pixels"):
                read_image(path)
        small = save(tmp_path / "a.png", random_image(40, 48))
        with pytest.raises(LimitError, match="48x40 pixels, the limit is 1919"):
            read_image(small, max_pixels=40 * 48 - 1)
        assert read_image(small, max_pixels=40 * 48).shape == (40, 48, 3)
        with pytest.raises(LimitError, match="bytes, the limit"):
            path.write_bytes(small.read_bytes() + bytes((16 << 20) + 8))
            read_image(path, max_pixels=1)

    @pytest.mark.filterwarnings("ignore:Corrupt EXIF")
    @pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "tiff", "webp"])
    def test_truncated_or_damaged_files_name_the_path(self, tmp_path, suffix):
        content = save(tmp_path / f"whole.{suffix}", random_image(64, 64)).read_bytes()
        path = tmp_path / f"cut.{suffix}"
        for length in (0, 3, 20, len(content) // 2, len(content) - 60):
            path.write_bytes(content[:length])
            with pytest.raises(ImageError, match=f"cut.{suffix}"):
                read_image(path)

    def test_damaged_png_checksum(self, tmp_path):
        path = save(tmp_path / "a.png", random_image(64, 64))
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(content)
        with pytest.raises(ImageError, match="a.png"):
            read_image(path)

    def test_formats_off_the_list_are_not_tried(self, tmp_path):
        for suffix in ("gif", "ppm", "eps"):
            path = tmp_path / "a.png"
            content = io.BytesIO()
            Image.fromarray(random_image()).save(content, suffix)
            path.write_bytes(content.getvalue())
            with pytest.raises(ImageError, match="a.png: no image that can be read \\(PNG, JPEG, BMP, TIFF, WEBP are\\)$"):
                read_image(path)

    def test_what_holds_no_image_is_told_in_one_line(self, tmp_path, monkeypatch):
        path = tmp_path / "a.png"
        for content, reason in ((b"", "no image that can be read: the file is empty$"), (b"text", "no image that can be read")):
            path.write_bytes(content)
            with pytest.raises(ImageError, match=reason) as raised:
                read_image(path)
            assert "BytesIO" not in str(raised.value)

        def fail(*_):
            raise cv2.error("OpenCV:\nerror: in function 'imdecode'\n")

        monkeypatch.setattr(cv2, "imdecode", fail)
        path.write_bytes(b"")
        pixels = np.random.default_rng(1).integers(0, 65536, (8, 8, 3)).astype(np.uint16)
        path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
        with pytest.raises(ImageError, match="cannot be decoded: OpenCV: error: in function 'imdecode'$"):
            read_image(path)

    @pytest.mark.parametrize("path", [3, b"a.png", None, ["a.png"], Bytes()])
    def test_what_is_no_path_is_not_opened(self, path):
        for read in (read_image, data.read_mask):
            with pytest.raises(TypeError, match="an image's path is .*; a path \\(str or os.PathLike\\) is wanted"):
                read(path)

    def test_paths_that_no_file_can_have(self):
        with pytest.raises(ImageError, match="no path of a file"):
            read_image("a\0b.png")
        with pytest.raises(ValueError, match="an empty path"):
            read_image("")

    def test_only_regular_files_are_opened(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            read_image(tmp_path / "none.png")
        os.mkfifo(tmp_path / "fifo.png")  # opening it would wait for a writer for ever
        (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
        for path, reason in (
            (tmp_path, "a folder, not a regular file"),
            (tmp_path / "fifo.png", "not a regular file"),
            (Path("/dev/zero"), "not a regular file"),
            (tmp_path / "loop.png", "loop"),
        ):
            with pytest.raises(ImageError, match=reason):
                read_image(path)


class TestReadMask:
    def test_every_pixel_that_is_not_black_is_anomalous(self, tmp_path):
        values = np.zeros((6, 6), np.uint8)
        values[1, 1], values[2, 2], values[3, 3] = 1, 7, 255
        expected = (values > 0).astype(np.uint8)
        for image in (values, values.astype(np.uint16), np.repeat(values[..., None], 3, axis=2)):
            mask = data.read_mask(save(tmp_path / "m.png", image))
            assert mask.dtype == np.uint8 and np.array_equal(mask, expected)
        indexed = Image.fromarray(1 - expected, "P")
        indexed.putpalette([255, 255, 255, 0, 0, 0])  # the index 0 is white here
        assert np.array_equal(data.read_mask(save(tmp_path / "m.png", indexed)), expected)

    def test_jpeg_ringing_is_not_anomalous(self, tmp_path):
        values = np.zeros((64, 64), np.uint8)
        values[11:37, 13:50] = 255
        path = save(tmp_path / "m.jpg", values, quality=60)
        assert (np.asarray(Image.open(path)) > 0).sum() > (values > 0).sum() + 50
        mask = data.read_mask(path)
        assert np.abs(mask.astype(int) - (values > 0)).sum() < 10

    def test_nearest_only(self, tmp_path):
        values = np.zeros((64, 64), np.uint8)
        values[16:32, 8:24] = 255
        path = save(tmp_path / "m.png", values)
        small = data.read_mask(path, size=16)
        assert set(np.unique(small)) == {0, 1} and small.sum() == 16
        assert np.array_equal(small, values[2::4, 2::4] // 255)
        assert data.read_mask(path, size=(128, 64)).mean() == (values > 0).mean()
        values = (np.random.default_rng(0).random((60, 60)) < 0.5).astype(np.uint8)
        nearest = ((np.arange(32) + 0.5) * 60 / 32).astype(int)
        mask = data.read_mask(save(path, values), size=32)
        assert np.array_equal(mask, values[np.ix_(nearest, nearest)])

    def test_size_mismatch(self, tmp_path):
        with pytest.raises(ImageError, match="mask.png: mask is 4x8 pixels, its image 8x4"):
            data.check_mask(np.zeros((4, 8, 3)), np.zeros((8, 4)), "mask.png")


def make_mvtec(root, name="bolt", train=3, good=2, defects=None):
    for part, count in (("train/good", train), ("test/good", good)):
        (root / name / part).mkdir(parents=True)
        for i in range(count):
            save(root / name / part / f"{i:03d}.png", random_image(16, 16, i))
    for defect, mask_name in (defects or {"bent": "{:03d}_mask.png", "cut": "{:03d}.png"}).items():
        for i in range(2):
            save(root / name / "test" / defect / f"{i:03d}.jpg", random_image(16, 16, 9 + i))
            mask = root / name / "ground_truth" / defect / mask_name.format(i)
            save(mask, np.eye(16, dtype=np.uint8) * 255)
    return root / name


class TestMvtec:
    def test_reads_all(self, tmp_path):
        make_mvtec(tmp_path, "nut")
        folder = make_mvtec(tmp_path, "bolt")
        (folder / "train" / "good" / "readme.txt").write_text("not an image")
        (folder / "train" / "good" / "._000.png").write_text("nor this")
        (tmp_path / ".cache" / "train" / "good").mkdir(parents=True)
        dataset = open_dataset(tmp_path)
        assert list(dataset) == ["bolt", "nut"] == list(data.list_classes(tmp_path))
        bolt = dataset["bolt"]
        assert bolt.train == tuple(folder / "train" / "good" / f"{i:03d}.png" for i in range(3))
        assert [(s.label, s.defect, s.path.name, s.mask_path and s.mask_path.name) for s in bolt.test] == [
            (1, "bent", "000.jpg", "000_mask.png"),
            (1, "bent", "001.jpg", "001_mask.png"),
            (1, "cut", "000.jpg", "000.png"),
            (1, "cut", "001.jpg", "001.png"),
            (0, "good", "000.png", None),
            (0, "good", "001.png", None),
        ]
        assert data.load_class(tmp_path, "bolt") == bolt
        image, mask = data.read_sample(bolt.test[0], size=8)
        assert image.shape == (8, 8, 3) and mask.shape == (8, 8) and mask.sum() == 8
        assert data.read_sample(bolt.test[-1])[1].sum() == 0

    def test_missing_mask(self, tmp_path):
        folder = make_mvtec(tmp_path)
        (folder / "ground_truth" / "cut" / "001.png").unlink()
        message = "'bolt'.*cut/001.jpg has no mask 001_mask.png in .*ground_truth/cut"
        with pytest.raises(DataError, match=message):
            open_dataset(tmp_path)
        sample = open_dataset(tmp_path, require_masks=False)["bolt"].test[3]
        assert (sample.label, sample.mask_path) == (1, None)
        with pytest.raises(DataError, match="no mask"):
            data.read_sample(sample)

    def test_mask_of_another_size(self, tmp_path):
        folder = make_mvtec(tmp_path)
        save(folder / "ground_truth" / "bent" / "000_mask.png", np.ones((16, 32), np.uint8))
        with pytest.raises(ImageError, match="000_mask.png: mask is 32x16 pixels, its image 16x16"):
            data.read_sample(open_dataset(tmp_path)["bolt"].test[0], size=8)

    def test_class_without_normal_images(self, tmp_path):
        make_mvtec(tmp_path, "nut")
        make_mvtec(tmp_path, "bolt", train=0)
        with pytest.raises(DataError, match="'bolt' has no normal training images in .*bolt/train/good"):
            open_dataset(tmp_path)
        assert len(data.load_class(tmp_path, "nut").train) == 3  # the other class is of no concern
        (tmp_path / "bolt" / "train" / "good").rmdir()
        (tmp_path / "bolt" / "train").rmdir()
        with pytest.raises(DataError, match="class 'bolt'"):
            open_dataset(tmp_path)

    def test_missing_and_wrong_roots(self, tmp_path):
        with pytest.raises(DataError, match="none does not exist"):
            open_dataset(tmp_path / "none")
        with pytest.raises(DataError, match="no classes"):
            open_dataset(tmp_path)
        with pytest.raises(DataError, match="no classes of layout 'mvtec'"):
            data.list_classes(tmp_path, "mvtec")
        with pytest.raises(ValueError, match="layout is 'coco'"):
            open_dataset(tmp_path, "coco")
        folder = make_mvtec(tmp_path)
        with pytest.raises(DataError, match="folder of one class"):
            open_dataset(folder)
        with pytest.raises(DataError, match="no class 'bold' in the data; did you mean 'bolt'\\? known: bolt$"):
            data.load_class(tmp_path, "bold")
        with pytest.raises(DataError, match="no class"):
            data.load_class(tmp_path, "../" + tmp_path.name + "/bolt")

    def test_image_that_is_no_regular_file(self, tmp_path):
        folder = make_mvtec(tmp_path)
        os.mkfifo(folder / "train" / "good" / "900.png")
        with pytest.raises(DataError, match="900.png is named like an image and is not a regular file"):
            open_dataset(tmp_path)

    def test_joining_data_sets(self, tmp_path):
        make_mvtec(tmp_path / "a", "nut")
        make_mvtec(tmp_path / "b", "bolt")
        a, b = open_dataset(tmp_path / "a"), open_dataset(tmp_path / "b")
        assert list(a | b) == ["bolt", "nut"] and isinstance(a | b, Dataset)
        with pytest.raises(DataError, match="two classes are named 'nut'"):
            a | a
        with pytest.raises(TypeError, match="made of ClassData, not of str"):
            Dataset(a)


def make_visa(root, normal=21):
    for i in range(normal):
        save(root / "candle" / "Data" / "Images" / "Normal" / f"{i:04d}.JPG", random_image(16, 16, i))
    for i in range(2):
        save(root / "candle" / "Data" / "Images" / "Anomaly" / f"{i:03d}.JPG", random_image(16, 16, i))
        save(root / "candle" / "Data" / "Masks" / "Anomaly" / f"{i:03d}.png", np.eye(16, dtype=np.uint8))


VISA_ROWS = [
    "candle,train,normal,candle/Data/Images/Normal/0003.JPG,",
    "candle,train,normal,candle/Data/Images/Normal/0001.JPG,",
    "candle,test,normal,candle/Data/Images/Normal/0002.JPG,",
    "candle,test,anomaly,candle/Data/Images/Anomaly/000.JPG,candle/Data/Masks/Anomaly/000.png",
]


def write_split(root, *rows, header="object,split,label,image,mask", newline="\n", encoding="utf-8"):
    path = root / "split_csv" / "1cls.csv"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes((newline.join([header, *rows]) + newline).encode(encoding))


class TestVisa:
    def test_raw_folders(self, tmp_path):
        make_visa(tmp_path)
        candle = open_dataset(tmp_path)["candle"]
        assert [s.path.name for s in candle.test if not s.label] == ["0009.JPG", "0019.JPG"]
        assert len(candle.train) == 19 and not {s.path for s in candle.test} & set(candle.train)
        anomalous = [s for s in candle.test if s.label]
        assert [s.mask_path.name for s in anomalous] == ["000.png", "001.png"]
        assert {s.defect for s in anomalous} == {"anomaly"}
        assert data.read_sample(anomalous[0])[1].sum() == 16  # masks of 0/1 count as well as 0/255

    @pytest.mark.parametrize("newline,encoding", [("\n", "utf-8"), ("\r\n", "utf-8-sig")])
    def test_published_split(self, tmp_path, newline, encoding):
        make_visa(tmp_path)
        write_split(tmp_path, *VISA_ROWS, newline=newline, encoding=encoding)
        candle = open_dataset(tmp_path)["candle"]
        assert [p.name for p in candle.train] == ["0001.JPG", "0003.JPG"]
        assert [(s.path.name, s.label, s.defect) for s in candle.test] == [
            ("000.JPG", 1, "anomaly"), ("0002.JPG", 0, "good"),
        ]  # fmt: skip
        assert candle.test[0].mask_path == tmp_path / "candle/Data/Masks/Anomaly/000.png"
        assert data.list_classes(tmp_path) == ("candle",)
        assert data.load_class(tmp_path, "candle") == candle
        with pytest.raises(DataError, match="did you mean 'candle'"):
            data.load_class(tmp_path, "candles")

    @pytest.mark.parametrize(
        "row,message",
        [
            ("candle,train,normal,../outside.png,", "leads out of"),
            ("candle,train,normal,{outside},", "leads out of"),
            ("candle,train,normal,candle/link.png,", "leads out of"),
            ("candle,train,normal,candle/none.png,", "line 6: 'candle/none.png' does not exist"),
            ("candle,train,normal,candle,", "not the path of an image"),
            ("candle,train,normal,candle/a\0.png,", "not the path of an image"),
            (VISA_ROWS[0], "stands on line 2 already"),
            ("candle,train,anomaly,candle/Data/Images/Anomaly/001.JPG,", "anomalous .* training split"),
            ("candle,test,anomaly,candle/Data/Images/Anomaly/001.JPG,", "has no mask"),
            ("candle,test,odd,candle/Data/Images/Anomaly/001.JPG,", "label 'odd'"),
            ("candle,val,normal,candle/Data/Images/Normal/0000.JPG,", "split 'val'"),
            ("candle,test,normal", "3 values, expected 5"),
            ("cashew,test,normal,candle/Data/Images/Normal/0000.JPG,", "'cashew' has no normal training"),
            ("a/b,train,normal,candle/Data/Images/Normal/0000.JPG,", "class 'a/b' has '/' in its name.*1cls.csv, line 6"),
            ('candle,"test', "1cls.csv, line 6: not a UTF-8 table"),
        ],
    )
    def test_faulty_splits(self, tmp_path, row, message):
        root = tmp_path / "visa"
        make_visa(root, normal=5)
        outside = save(tmp_path / "outside.png", random_image())
        (root / "candle" / "link.png").symlink_to(outside)
        write_split(root, *VISA_ROWS, row.format(outside=outside))
        with pytest.raises(DataError, match=message):
            open_dataset(root)

    def test_faulty_tables(self, tmp_path):
        make_visa(tmp_path, normal=5)
        write_split(tmp_path, header="object,split,label,image")
        with pytest.raises(DataError, match="1cls.csv, line 1: no column 'mask'"):
            open_dataset(tmp_path)
        write_split(tmp_path)
        with pytest.raises(DataError, match="no classes"):
            open_dataset(tmp_path)
        write_split(tmp_path, "käse", encoding="latin-1")
        with pytest.raises(DataError, match="not a UTF-8 table"):
            open_dataset(tmp_path)


TABLE = [
    "bolt,train,normal,a/1.png,,x",
    "bolt,train,Normal,a/0.png,,",
    "nut,train,0,b/0.png,,",
    "bolt,test,0,a/2.png,,",
    "bolt,test,scratch,b/1.png,masks/1.png,",
    "bolt,test,1,b/2.png,masks/2.png,",
    "nut,test,anomalous,a/3.png,masks/1.png,",
]


class TestTable:
    @pytest.fixture
    def root(self, tmp_path):
        for folder in ("a", "b"):
            for i in range(5):
                save(tmp_path / "data" / folder / f"{i}.png", random_image(16, 16, i))
        for i in (1, 2):
            save(tmp_path / "data" / "masks" / f"{i}.png", np.eye(16, dtype=np.uint8))
        return tmp_path / "data"

    @staticmethod
    def write(root, *rows, header="class,split,label,image,mask,more", encoding="utf-8"):
        (root / "split.CSV").write_bytes(("\r\n".join([header, *rows]) + "\r\n").encode(encoding))
        return root / "split.CSV"

    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
    def test_classes_and_splits(self, root, encoding):
        path = self.write(root, *TABLE, encoding=encoding)
        dataset = open_dataset(path)
        bolt, nut = dataset["bolt"], dataset["nut"]
        assert list(dataset) == ["bolt", "nut"] == list(data.list_classes(path))
        assert bolt.train == (root / "a/0.png", root / "a/1.png") and nut.train == (root / "b/0.png",)
        assert [(s.path.name, s.label, s.defect, s.mask_path) for s in bolt.test] == [
            ("2.png", 0, "good", None), ("1.png", 1, "scratch", root / "masks/1.png"), ("2.png", 1, "anomaly", root / "masks/2.png"),
        ]  # fmt: skip
        assert {s.class_name for s in bolt.test} == {"bolt"} and nut.test[0].defect == "anomaly"
        assert data.load_class(str(path), "nut") == nut == open_dataset(path, "table")["nut"]
        assert data.read_sample(bolt.test[1])[1].sum() == 16
        with pytest.raises(DataError, match="did you mean 'bolt'"):
            data.load_class(path, "bold")

    def test_without_masks(self, root):
        path = self.write(root, "bolt,train,0,a/0.png", "bolt,test,cut,a/1.png", header=" class , split,label,image")
        with pytest.raises(DataError, match="split.CSV, line 3: anomalous image a/1.png of class 'bolt' has no mask"):
            open_dataset(path)
        (sample,) = open_dataset(path, require_masks=False)["bolt"].test
        assert (sample.label, sample.defect, sample.mask_path) == (1, "cut", None)

    @pytest.mark.parametrize(
        "row,message",
        [
            ("bolt,val,0,a/4.png,,", "line 9: class 'bolt', split 'val', label '0'; expected a class, train or test, normal"),
            *((f"bolt,test,{label},a/4.png,,", f"line 9: .* label '{label}'; expected a class") for label in ("", "False", "2", "0.0", "nan")),
            (",test,0,a/4.png,,", "line 9: class '', "),
            ("bolt,train,scratch,a/4.png,,", "line 9: anomalous image a/4.png in the training split of 'bolt'"),
            ("bolt,train,1,a/4.png,,", "line 9: anomalous image"),
            ("nut,train,0,a/2.png,,", "line 9: a/2.png stands on line 5 already"),
            ("bolt,test,0,a/9.png,,", "line 9: 'a/9.png' does not exist in .*data"),
            ("bolt,test,1,a/4.png,masks/9.png,", "line 9: 'masks/9.png' does not exist"),
            ("bolt,test,0,../out.png,,", "line 9: '../out.png' leads out of .*data"),
            ("bolt,test,0,split.CSV,,", "line 9: 'split.CSV' is not the path of an image"),
            ("bolt,test,0,a/4.png,", "line 9: 5 values, expected 6"),
            ("gear,test,0,a/4.png,,", "class 'gear' has no normal training images in .*split.CSV"),
            ("a/b,test,0,a/4.png,,", "class 'a/b' has '/' in its name.*split.CSV, line 9"),
        ],
    )
    def test_faulty_rows(self, root, row, message):
        save(root.parent / "out.png", random_image())
        with pytest.raises(DataError, match=message):
            open_dataset(self.write(root, *TABLE, row))

    def test_what_is_no_table(self, root, tmp_path):
        for header, message in (("class,split,label,path", "line 1: no column 'image'"), ("class,class,split,label,image", "two columns")):
            with pytest.raises(DataError, match=message):
                open_dataset(self.write(root, header=header))
        with pytest.raises(DataError, match="no classes in .*split.CSV"):
            open_dataset(self.write(root))
        with pytest.raises(DataError, match="a/0.png is no table: a file \\*.csv is wanted, or a folder$"):
            open_dataset(root / "a" / "0.png")
        for wrong in (root, root / "none.csv"):
            with pytest.raises(DataError, match="is no table: a file \\*.csv is wanted$"):
                open_dataset(wrong, "table")
        with pytest.raises(DataError, match="none.csv does not exist"):
            open_dataset(root / "none.csv")
        with pytest.raises(DataError, match="split.CSV is not a folder"):
            open_dataset(self.write(root, *TABLE), "mvtec")


class TestFolder:
    def test_one_class(self, tmp_path):
        for i in (2, 0, 1):
            save(tmp_path / "parts" / f"{i}.BMP", random_image(), format="bmp")
        dataset = open_dataset(tmp_path / "parts")
        assert [p.name for p in dataset["parts"].train] == ["0.BMP", "1.BMP", "2.BMP"]
        assert dataset["parts"].test == ()

    def test_one_folder_a_class(self, tmp_path):
        for name in ("b", "a"):
            save(tmp_path / name / "0.png", random_image())
        dataset = open_dataset(tmp_path)
        assert [(c.name, len(c.train), c.test) for c in dataset.values()] == [("a", 1, ()), ("b", 1, ())]
        (tmp_path / "c").mkdir()
        with pytest.raises(DataError, match="class 'c' has no normal training images in .*/c"):
            open_dataset(tmp_path)
        (tmp_path / "c").rmdir()
        save(tmp_path / "0.png", random_image())
        with pytest.raises(DataError, match="holds images of its own and a folder of images, 'a'"):
            open_dataset(tmp_path)

    @pytest.mark.parametrize(
        "names,told",
        [
            (("good", "bad"), "bad, good"),
            (("OK", "NG"), "NG, OK"),
            (("normal", "crack", "stain"), "crack, normal, stain"),
            (("Not-OK", "screw"), "Not-OK"),
            (("train", "test"), "test, train"),
        ],
    )
    def test_parts_of_one_product_are_no_products(self, tmp_path, names, told):
        for name in names:
            save(tmp_path / "bolt" / name / "0.png", random_image())
        root = tmp_path / "bolt"
        if "train" in names:  # as MVTec AD has them, but for train/good: layout "mvtec" would say so of what is above
            (root / "train" / "0.png").unlink()
        message = f"bolt holds the folders {told}, which are parts of one product's data, .*<class>/train/good"
        for list_them in (open_dataset, data.list_classes):
            with pytest.raises(DataError, match=message) as raised:
                list_them(root)
            assert "\n" not in str(raised.value)
        assert data.list_classes(root, "folder") == tuple(sorted(names))  # asked for by name
        if "train" not in names:
            inside = ", ".join(sorted(names))
            with pytest.raises(DataError, match=f"'bolt' has no normal training .*holds the folders {inside}; <class>/train"):
                open_dataset(tmp_path)

    def test_one_folder_of_good_images(self, tmp_path):
        save(tmp_path / "good" / "0.png", random_image())
        assert list(open_dataset(tmp_path)) == ["good"]
        (tmp_path / "bad").mkdir()
        save(tmp_path / "0.png", random_image())  # the product's own images, and folders of none
        (tmp_path / "good" / "0.png").unlink()
        assert list(open_dataset(tmp_path)) == [tmp_path.name]

    @pytest.mark.parametrize("name", ["a\nb", "a\x7f", "n" * 201, os.fsdecode(b"caf\xe9"), " "])
    def test_folders_that_no_class_can_be_named_after(self, tmp_path, name):
        save(tmp_path / "parts" / name / "0.png", random_image())
        with pytest.raises(DataError, match=r"^class .* name.* \(a folder in '.*parts'\)$") as raised:
            open_dataset(tmp_path / "parts")
        str(raised.value).encode()  # can be shown
        with pytest.raises(DataError, match="a folder in"):
            open_dataset(tmp_path / "parts" / name)

    def test_a_root_that_is_told_by_dots_has_its_folders_name(self, tmp_path, monkeypatch):
        save(tmp_path / "parts" / "0.png", random_image())
        (tmp_path / "parts" / "none").mkdir()
        for at, root in (("parts", "."), ("parts/none", "..")):
            monkeypatch.chdir(tmp_path / at)
            assert list(open_dataset(root)) == ["parts"]


class TestPerturb:
    image = random_image(96, 80, 1) / np.float32(255)
    source = random_image(96, 80, 2) / np.float32(255)

    def test_changes_inside_the_mask_only_and_never_the_inputs(self):
        before = self.image.copy(), self.source.copy()
        for index in range(30):
            result, mask = perturb(self.image, self.source, perturbation_rng(0, 0, index))
            assert result.dtype == np.float32 and mask.dtype == np.uint8 and set(np.unique(mask)) == {0, 1}
            assert np.array_equal(result[mask == 0], self.image[mask == 0])
            assert np.abs(result - self.image)[mask == 1].max() > 3 / 255
            assert 0 <= result.min() and result.max() <= 1
        assert np.array_equal(before[0], self.image) and np.array_equal(before[1], self.source)

    def test_depends_on_seed_epoch_and_index_alone(self):
        first = perturb(self.image, self.source, perturbation_rng(3, 1, 7))
        perturb(self.source, self.image, perturbation_rng(9, 9, 9))
        assert all(map(np.array_equal, first, perturb(self.image, self.source, perturbation_rng(3, 1, 7))))
        others = [perturbation_rng(*key) for key in ((4, 1, 7), (3, 2, 7), (3, 1, 8), (3, 7, 1))]
        assert not any(np.array_equal(first[0], perturb(self.image, self.source, rng)[0]) for rng in others)

    def test_number_and_size_of_patches(self):
        counts, sides = set(), []
        for index in range(150):
            rng = perturbation_rng(0, 0, index)
            mask = perturb(self.image, self.source, rng, n_patches=(1, 1), side=(0.1, 0.3))[1]
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            assert mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()  # one rectangle
            sides += [(len(rows) - 4) / 96, (len(columns) - 4) / 80]
            many = perturb(self.image, self.source, perturbation_rng(0, 0, index), side=(0.03, 0.06))[1]
            counts.add(cv2.connectedComponents(many)[0] - 1)
        assert 0.09 <= min(sides) < 0.13 and 0.28 < max(sides) <= 0.31
        assert counts == {1, 2, 3, 4}

    def test_is_poisson_editing_and_not_a_paste(self):
        # Gradients are what is transferred: where the source has the image's own, only brighter, nothing
        # changes, while a paste would change every patch by 0.4.
        ramp = np.tile(np.arange(64, dtype=np.float32)[None, :, None] * 2 / 255, (64, 1, 3))
        for index in range(5):
            result, mask = perturb(ramp, ramp + np.float32(102 / 255), perturbation_rng(0, 0, index))
            assert np.abs(result - ramp).max() < 4 / 255

    def test_background_on_background_is_drawn_again(self):
        image = np.zeros((64, 64, 3), np.float32)
        source = image.copy()
        source[24:40, 24:40] = 1  # most patches miss its edge
        for index in range(10):
            result, mask = perturb(image, source, perturbation_rng(0, 0, index), n_patches=(1, 1))
            assert mask.any() and np.abs(result - image)[mask == 1].max() > 3 / 255

    def test_two_empty_pictures_cannot_be_perturbed(self):
        image = np.full((32, 32, 3), 0.5, np.float32)
        result, mask = perturb(image, image, perturbation_rng(0, 0, 0))
        assert np.array_equal(result, image) and not mask.any()

    def test_feathered_paste_where_poisson_editing_fails(self, monkeypatch):
        def fail(*_):
            raise cv2.error("degenerate")

        monkeypatch.setattr(cv2, "seamlessClone", fail)
        result, mask = perturb(self.image, self.source, perturbation_rng(0, 0, 0))
        assert np.array_equal(result[mask == 0], self.image[mask == 0])
        assert np.abs(result - self.image)[mask == 1].max() > 3 / 255

    @pytest.mark.parametrize(
        "change,message",
        [
            ({"image": np.zeros((8, 8, 3))}, "image is float64"),
            ({"source": np.zeros((8, 8), np.float32)}, "source is float32 \\[8, 8\\]"),
            ({"source": np.zeros((8, 8, 3), np.float32)}, "expected one shape"),
            (dict.fromkeys(("image", "source"), np.zeros((9, 20, 3), np.float32)), "at least 10"),
            ({"n_patches": (0, 4)}, "n_patches"),
            ({"side": (0.3, 0.2)}, "side"),
        ],
    )
    def test_refusals(self, change, message):
        arguments = {"image": self.image, "source": self.source} | change
        with pytest.raises(ValueError, match=message):
            perturb(rng=perturbation_rng(0, 0, 0), **arguments)


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """Two classes of 5 and 6 images: the first dark, the second bright."""
    root = tmp_path_factory.mktemp("classes")
    made = []
    for name, count, floor in (("dark", 5, 0), ("bright", 6, 160)):
        paths = []
        for i in range(count):
            grain = np.random.default_rng(floor + i).integers(0, 30, (40, 40, 3))
            pixels = random_image(40, 40, 100 * floor + i) // 4 + floor + grain
            paths.append(save(root / name / f"{i}.png", pixels.astype(np.uint8)))
        made.append(ClassData(name, tuple(paths), ()))
    return made


def make_loader(classes, **options):
    return TrainingBatches(classes, **({"image_size": 32, "batch_size": 4, "seed": 5} | options))


def assert_equal_batches(first, second):
    for a, b in itertools.zip_longest(first, second):
        assert a.step == b.step and np.array_equal(a.index, b.index)
        assert np.array_equal(a.image, b.image) and np.array_equal(a.perturbed, b.perturbed)


class TestTrainingBatches:
    def test_an_epoch(self, classes):
        loader = make_loader(classes)
        batches = list(loader.epoch(0))
        assert len(loader) == 3 == len(batches) and [b.step for b in batches] == [0, 1, 2]
        index = np.concatenate([b.index for b in batches])
        assert index.dtype == np.int64 and sorted(index[:11]) == list(range(11))
        assert index[11] == index[0]  # the last batch wraps around
        for batch in batches:
            assert batch.image.shape == batch.perturbed.shape == (4, 32, 32, 3)
            assert batch.image.dtype == batch.perturbed.dtype == np.float32
            for i, j in enumerate(batch.index):
                assert np.abs(batch.image[i] - read_image(loader.sources[j], size=32)).max() <= 0.5 / 255 + 1e-6

    def test_the_order_depends_on_seed_and_epoch(self, classes):
        def order(seed, epoch):
            return np.concatenate([b.index for b in make_loader(classes, seed=seed).epoch(epoch)]).tolist()

        assert order(5, 0) == order(5, 0)
        assert order(5, 0) != order(5, 1) and order(5, 0) != order(6, 0)

    def test_steps_run_through_the_epochs(self, classes):
        loader = make_loader(classes)
        joined = [batch for epoch in range(4) for batch in loader.epoch(epoch)]
        for first, last in ((0, 12), (2, 4), (5, 11), (7, 7)):
            assert_equal_batches(loader.steps(first, last), joined[first:last])
        with pytest.raises(ValueError, match="first is -1"):
            loader.steps(-1, 3)

    def test_the_next_epoch_is_made_ahead(self, classes, monkeypatch):
        loader = make_loader(classes, prefetch=2)
        original, next_epoch = loader._make, threading.Event()

        def make(epoch, step):
            if epoch == 1:
                next_epoch.set()
            return original(epoch, step)

        monkeypatch.setattr(loader, "_make", make)
        batches = loader.steps(0, 6)
        assert [next(batches).step for _ in range(2)] == [0, 1]
        assert next_epoch.wait(timeout=10)
        batches.close()

    def test_bits_do_not_depend_on_workers_prefetch_cache_or_start(self, classes):
        reference = list(make_loader(classes).epoch(2))
        for options in (
            {"workers": 3, "prefetch": 8},
            {"prefetch": 1},
            {"cache_bytes": 0},
            {"cache_bytes": 4 * 32 * 32 * 3},
        ):
            loader = make_loader(classes, **options)
            list(loader.epoch(0))
            assert_equal_batches(loader.epoch(2), reference)
        assert_equal_batches(make_loader(classes, workers=2).epoch(2, start_step=1), reference[1:])
        assert list(make_loader(classes).epoch(2, start_step=3)) == []

    def test_a_sample_does_not_depend_on_its_place(self, classes):
        def by_index(batch_size):
            batches = make_loader(classes, batch_size=batch_size).epoch(1)
            return {int(j): x for b in batches for j, x in zip(b.index, b.perturbed, strict=True)}

        one, many = by_index(1), by_index(7)
        assert one.keys() == many.keys() and all(np.array_equal(one[j], many[j]) for j in one)

    def test_share_of_perturbed_samples(self, classes):
        def share(perturb_share):
            loader = make_loader(classes, perturb_share=perturb_share, batch_size=11)
            changed = [
                (x != y).any() for e in range(20) for b in loader.epoch(e)
                for x, y in zip(b.image, b.perturbed, strict=True)
            ]  # fmt: skip
            return np.mean(changed)

        assert share(0) == 0 and share(1) == 1 and 0.4 < share(0.5) < 0.6

    def test_patches_come_from_another_image_of_the_class(self, classes, monkeypatch):
        from cdad.data import loader as module

        pairs = []

        def record(image, source, rng):
            pairs.append((image, source))
            return image, None

        monkeypatch.setattr(module, "perturb", record)
        for epoch in range(4):
            list(make_loader(classes, perturb_share=1).epoch(epoch))
        assert len(pairs) == 48
        assert all((image.mean() < 0.5) == (source.mean() < 0.5) for image, source in pairs)
        assert not any(np.array_equal(image, source) for image, source in pairs)

    def test_decodes_each_image_once_within_the_budget(self, classes, monkeypatch):
        from cdad.data import loader as module

        reads = []
        monkeypatch.setattr(module, "read_image", lambda *a, **k: reads.append(a) or read_image(*a, **k))
        loader = make_loader(classes)
        for epoch in range(3):
            list(loader.epoch(epoch))
        assert len(reads) == 11
        reads.clear()
        loader = make_loader(classes, cache_bytes=5 * 32 * 32 * 3 + 1, perturb_share=0, batch_size=11)
        for epoch in range(3):
            list(loader.epoch(epoch))
        assert len(reads) == 11 + 6 + 6

    def test_light(self, classes):
        plain, lit = make_loader(classes), make_loader(classes, light=0.2)
        assert (plain.n_images, lit.n_images) == (11, 44)
        clean, original = lit.clean(0, 44), plain.clean(0, 11)
        assert np.array_equal(clean[::4], original) and not np.array_equal(clean[1::4], original)
        seen = set()
        for epoch in range(3):
            for a, b in zip(plain.epoch(epoch), lit.epoch(epoch), strict=True):
                assert np.array_equal(b.index // 4, a.index) and np.array_equal(b.image, clean[b.index])
                seen |= set(b.index % 4)
        assert seen == {0, 1, 2, 3}
        with pytest.raises(ValueError, match="light is 1, expected 0 <= light < 1"):
            make_loader(classes, light=1)

    def test_relight(self):
        image = np.random.default_rng(0).uniform(0.3, 0.7, (8, 9, 3)).astype(np.float32)
        rng, gains, contrasts = np.random.default_rng(1), [], []
        for _ in range(200):
            other = data.relight(image, rng, 0.2)
            assert other.dtype == np.float32 and 0 <= other.min() and other.max() <= 1
            gains.append(other.mean() / image.mean())
            contrasts.append(other.std() / image.std() / gains[-1])
        for found in (gains, contrasts):
            assert 0.8 <= min(found) < 0.85 and 1.15 < max(found) <= 1.2 and abs(np.mean(found) - 1) < 0.03
        assert np.allclose(data.relight(image, rng, 0.0), image, atol=1e-6)

    def test_paths_make_one_class_and_a_single_image_is_enough(self, classes):
        loader = make_loader([str(p) for p in classes[0].train])
        assert loader.sources == classes[0].train
        assert make_loader(classes[1]).sources == classes[1].train
        assert make_loader(Dataset(classes)).sources == (*classes[1].train, *classes[0].train)
        assert make_loader(set(classes[0].train)).sources == classes[0].train == make_loader(iter(classes[0].train)).sources
        alone = next(make_loader(classes[0].train[:1], perturb_share=1).epoch(0))
        assert alone.index.tolist() == [0, 0, 0, 0] and (alone.image != alone.perturbed).any()

    def test_errors_of_workers_surface_at_their_batch(self, classes, tmp_path):
        bad = tmp_path / "bad.png"
        bad.write_bytes(b"not an image")
        loader = make_loader([*classes[0].train, bad], batch_size=1, perturb_share=0, workers=2)
        sound = make_loader([*classes[0].train, classes[1].train[0]], batch_size=1)
        order = [int(b.index[0]) for b in sound.epoch(0)]
        seen = []
        with pytest.raises(ImageError, match="bad.png"):
            for batch in loader.epoch(0):
                seen.append(int(batch.index[0]))
        assert seen == order[: order.index(5)]
        assert not data_threads()

    def test_leaving_early_ends_the_workers(self, classes, monkeypatch):
        loader = make_loader(classes, batch_size=1, workers=2, prefetch=10)
        original, go_on, made = loader._make, threading.Event(), []

        def make(epoch, step):
            assert step == 0 or go_on.wait(timeout=10)
            made.append(step)
            return original(epoch, step)

        monkeypatch.setattr(loader, "_make", make)
        batches = loader.epoch(0)
        next(batches)
        assert data_threads()
        threading.Timer(0.1, go_on.set).start()  # the workers are at a batch while the epoch is left
        batches.close()
        assert not data_threads()
        assert sorted(made) in ([0, 1, 2], [0, 1])  # what was at work ended, what was queued never began
        monkeypatch.undo()
        with pytest.raises(KeyboardInterrupt):
            for _ in loader.epoch(0):
                raise KeyboardInterrupt
        assert not data_threads()

    def test_prefetching_is_ahead_and_bounded(self, classes, monkeypatch):
        made = threading.Semaphore(0)
        count = itertools.count(1)
        loader = make_loader(classes, batch_size=1, prefetch=3)
        original = loader._make

        def make(*arguments):
            batch = original(*arguments)
            next(count)
            made.release()
            return batch

        monkeypatch.setattr(loader, "_make", make)
        batches = loader.epoch(0)
        next(batches)
        for _ in range(4):  # the one handed over and three ahead are made without being asked for
            assert made.acquire(timeout=10)
        assert not made.acquire(timeout=0.2)
        batches.close()
        assert next(count) == 5

    @pytest.mark.parametrize(
        "options,message",
        [
            ({"batch_size": 0}, "batch_size is 0"),
            ({"prefetch": 0}, "prefetch is 0"),
            ({"workers": 0}, "workers is 0"),
            ({"perturb_share": 1.5}, "perturb_share is 1.5"),
            ({"seed": -1}, "seed is -1"),
            ({"image_size": 0}, "size is 0"),
        ],
    )
    def test_refusals(self, classes, options, message):
        with pytest.raises(ValueError, match=message):
            make_loader(classes, **options)

    def test_refused_inputs(self, classes):
        with pytest.raises(DataError, match="no training images"):
            make_loader([])
        with pytest.raises(TypeError, match="mixed"):
            make_loader([classes[0], "a.png"])
        with pytest.raises(TypeError, match="not the one path 'a.png'; open_dataset"):
            make_loader("a.png")
        with pytest.raises(TypeError, match=r"image 1 is bytes b'b.png'"):
            make_loader(["a.png", b"b.png"])
        with pytest.raises(ValueError, match="start_step is 4, expected 0..3"):
            make_loader(classes).epoch(0, start_step=4)


def data_threads():
    return [t.name for t in threading.enumerate() if t.name.startswith("cdad-data")]


def test_load_images(classes):
    images = data.load_images(classes[0].train, (24, 32))
    assert images.shape == (5, 24, 32, 3) and images.dtype == np.float32
    assert np.array_equal(images[3], read_image(classes[0].train[3], size=(24, 32)))
    assert data.load_images([], 8).shape == (0, 8, 8, 3)
    for one in (classes[0].train[3], str(classes[0].train[3])):
        assert np.array_equal(data.load_images(one, (24, 32)), images[3:4])
    for order in (set(classes[0].train), iter(classes[0].train)):
        assert np.array_equal(data.load_images(order, (24, 32)), images)
    for wrong, message in ((b"a.png", "images.*not bytes b'a.png'"), ([3], "image 0 is int 3"), ({"a": 1}, "dict")):
        with pytest.raises(TypeError, match=message):
            data.load_images(wrong, 8)


@pytest.mark.skipif(not REAL.is_dir(), reason="real images (CDAD_SHARED/data) are not present")
class TestRealData:
    def test_counts(self):
        dataset = open_dataset(REAL)
        counts = {
            name: (len(c.train), sum(not s.label for s in c.test), sum(s.label for s in c.test))
            for name, c in dataset.items()
        }
        assert counts["bottle"] == (209, 20, 63)
        assert counts["magnetic_tile"] == (220, 60, 114)
        assert len(counts) == 12

    def test_images_and_masks_fit(self):
        for name, class_data in open_dataset(REAL).items():
            anomalous = [s for s in class_data.test if s.label]
            for sample in anomalous[:: max(len(anomalous) // 3, 1)]:
                image, mask = data.read_sample(sample, size=64)
                assert image.shape == (64, 64, 3) and 0.02 < image.mean() < 0.98, name
                assert mask.dtype == np.uint8 and set(np.unique(mask)) <= {0, 1}, name
            assert any(data.read_sample(s)[1].any() for s in anomalous[:2]), name

    def test_every_class_can_be_perturbed(self):
        for name, class_data in open_dataset(REAL).items():
            first, second = data.load_images(class_data.train[:2], 128)
            result, mask = perturb(first, second, perturbation_rng(0, 0, 0))
            assert mask.any() and np.abs(result - first)[mask == 1].max() > 3 / 255, name
