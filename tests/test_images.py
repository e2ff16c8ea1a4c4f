"""Reading images and masks: what is read to which values, and what is refused, by name."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pictures import random_image, save

from cdad import data
from cdad.data import read_image
from cdad.data.inputs import as_images
from cdad.errors import ImageError, LimitError


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
        cv2.imwrite(str(tmp_path / "c.tiff"), np.ones((4, 4, 3), np.float32))
        with pytest.raises(ImageError, match="c.tiff: a TIFF that is damaged, or of pixels that are not read: 8 or 16 bits"):
            read_image(tmp_path / "c.tiff")

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
        with Image.open(path) as opened, pytest.raises(LimitError, match="image 0: its file has more bytes"):
            read_image(as_images(opened)[0], max_pixels=1)

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


def tiff16(colours, fourth, extra):
    """Interleaved uint16 of four samples, little endian, whose fourth is `extra`, as TIFF's tag 338 tells."""
    h, w = colours.shape[:2]
    pixels = np.dstack([colours, np.full((h, w, 1), fourth, np.uint16)]).astype("<u2").tobytes()
    tags = [(256, 4, [w]), (257, 4, [h]), (258, 3, [16] * 4), (259, 3, [1]), (262, 3, [2]), (273, 4, [0]), (277, 3, [4]), (278, 4, [h]),
            (279, 4, [len(pixels)]), (338, 3, [extra])]  # fmt: skip
    end = 8 + 2 + 12 * len(tags) + 4
    tags[5] = (273, 4, [end + 8])
    body = struct.pack("<H", len(tags))
    for tag, kind, values in tags:
        raw = struct.pack(f"<{len(values)}{'H' if kind == 3 else 'I'}", *values)
        body += struct.pack("<HHI", tag, kind, len(values)) + (raw.ljust(4, b"\0") if len(raw) <= 4 else struct.pack("<I", end))
    return b"II*\0" + struct.pack("<I", 8) + body + bytes(4) + struct.pack("<4H", 16, 16, 16, 16) + pixels


@pytest.mark.parametrize("extra, fourth, share", [(0, 0, 1.0), (1, 32768, 1.0), (2, 32768, 32768 / 65535)])
def test_what_the_fourth_sample_of_a_deep_tiff_is(extra, fourth, share, tmp_path):
    """Anything; the alpha of colours that are multiplied by it already; alpha."""
    colours = np.random.default_rng(0).integers(0, 32768, (9, 7, 3)).astype(np.uint16)
    path = tmp_path / "a.tif"
    path.write_bytes(tiff16(colours, fourth, extra))
    np.testing.assert_allclose(read_image(path), colours / 65535 * share, atol=2e-5)


def test_bitmaps_of_five_and_six_bits(tmp_path):
    """As they are decoded by Pillow, whose layout of them looks like 16-bit colours."""
    words = np.random.default_rng(0).integers(0, 1 << 16, (4, 6)).astype("<u2")
    header = struct.pack("<IiiHHIIiiII", 40, 6, -4, 1, 16, 3, words.nbytes, 0, 0, 0, 0) + struct.pack("<III", 0xF800, 0x07E0, 0x001F)
    path = tmp_path / "a.bmp"
    path.write_bytes(b"BM" + struct.pack("<IHHI", 14 + len(header) + words.nbytes, 0, 0, 14 + len(header)) + header + words.tobytes())
    colours = np.stack([(words >> 11) / 31, (words >> 5 & 63) / 63, (words & 31) / 31], -1)
    np.testing.assert_allclose(read_image(path), colours, atol=1 / 255)  # cut, not rounded


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_the_grey_that_stands_for_nothing_is_black(bits, tmp_path):
    most = (1 << bits) - 1
    greys, key = np.arange(16).reshape(2, 8) % (most + 1), 1 if bits == 1 else 2
    rows = b"".join(b"\0" + (row.astype(">u2").tobytes() if bits == 16 else np.packbits(
        (row[:, None] >> np.arange(bits)[::-1] & 1).astype(np.uint8)).tobytes()) for row in greys)  # fmt: skip
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 8, 2, bits, 0, 0, 0, 0)), (b"tRNS", struct.pack(">H", key)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    path = tmp_path / "a.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks))
    np.testing.assert_allclose(read_image(path)[..., 0], np.where(greys == key, 0, greys / most), atol=1e-6)
