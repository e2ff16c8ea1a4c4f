"""Data sets on disk: the layouts that are known, what of them is listed, and what is refused, by name."""

from __future__ import annotations

import os

import numpy as np
import pytest
from paths import REAL, needs_real_images
from pictures import random_image, save

from cdad import data
from cdad.data import Dataset, open_dataset, perturb, perturbation_rng
from cdad.errors import DataError, ImageError


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
        image, mask = data.read_sample(bolt.test[0], size=8)
        assert image.shape == (8, 8, 3) and mask.shape == (8, 8) and mask.sum() == 8
        assert data.read_sample(bolt.test[-1])[1].sum() == 0

    def test_normal_folders_have_several_names(self, tmp_path):
        folder = make_mvtec(tmp_path)
        for part in ("train", "test"):
            (folder / part / "good").rename(folder / part / "ok")
        bolt = open_dataset(tmp_path)["bolt"]
        assert len(bolt.train) == 3 and [s.label for s in bolt.test] == [1] * 4 + [0] * 2
        with pytest.raises(DataError, match="is the folder of one class"):
            open_dataset(folder)

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

    def test_folders_of_tests_alone(self, tmp_path):
        make_visa(tmp_path)
        for path in (tmp_path / "candle" / "Data" / "Images" / "Normal").iterdir():
            path.unlink()
        with pytest.raises(DataError, match="no normal training images"):
            open_dataset(tmp_path)
        candle = open_dataset(tmp_path, require_train=False)["candle"]
        assert candle.train == () and {s.label for s in candle.test} == {1}

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
        assert open_dataset(str(path), "table")["nut"] == nut
        assert data.read_sample(bolt.test[1])[1].sum() == 16

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
            ("bolt,test,0,split.CSV,,", "line 9: 'split.CSV' is not the path of an image"),
            ("bolt,test,0,a/4.png,", "line 9: 5 values, expected 6"),
            ("gear,test,0,a/4.png,,", "class 'gear' has no normal training images in .*split.CSV"),
            ("a/b,test,0,a/4.png,,", "class 'a/b' has '/' in its name.*split.CSV, line 9"),
        ],
    )
    def test_faulty_rows(self, root, row, message):
        with pytest.raises(DataError, match=message):
            open_dataset(self.write(root, *TABLE, row))

    def test_images_elsewhere(self, root):
        out = save(root.parent / "out.png", random_image())
        path = self.write(root, *TABLE, "bolt,test,0,../out.png,,", f"nut,train,0,{root.parent / 'absolute.png'},,")
        with pytest.raises(DataError, match="line 10: '.*absolute.png' does not exist"):
            open_dataset(path)
        save(root.parent / "absolute.png", random_image())
        dataset = open_dataset(path)
        assert any(sample.path.samefile(out) for sample in dataset["bolt"].test)
        assert root.parent / "absolute.png" in dataset["nut"].train

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


@needs_real_images
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
