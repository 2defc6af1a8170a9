import os

import numpy as np
import pytest
from PIL import Image
from semseal.runtime.errors import PictureError
from semseal.runtime.files import shown
from semseal.runtime.pictures import center_crop, open_pictures, random_crop


def write(path, height=30, width=20, colour=(10, 200, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), colour).save(path)


@pytest.fixture
def celeba(tmp_path):
    lines = []
    for i, part in enumerate([0, 0, 0, 1, 2, 2]):
        write(tmp_path / "img_align_celeba" / f"{i:06}.jpg", 218, 178, (40 * i, 0, 0))
        lines.append(f"{i:06}.jpg {part}")
    (tmp_path / "list_eval_partition.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_celeba_follows_its_partition(celeba):
    for split, names in {"train": ["000000", "000001", "000002"], "valid": ["000003"], "test": ["000004", "000005"]}.items():
        pictures = open_pictures(f"celeba:{celeba}", split)
        assert [path.stem for path in pictures.paths] == names
    images = open_pictures(f"celeba:{celeba}", "test").take(2, 180, 180)
    assert images.shape == (2, 3, 180, 180)
    assert images.dtype == np.float32
    assert images[:, 0].mean(axis=(1, 2)) == pytest.approx([160 / 255, 200 / 255], abs=0.02)


def test_celeba_partition_errors_name_the_line(celeba):
    (celeba / "list_eval_partition.txt").write_text("000000.jpg 0\n000001.jpg 7\n")
    with pytest.raises(PictureError, match=r"list_eval_partition.txt:2: expected"):
        open_pictures(f"celeba:{celeba}", "train")
    (celeba / "list_eval_partition.txt").unlink()
    with pytest.raises(PictureError, match="not found"):
        open_pictures(f"celeba:{celeba}", "train")


def test_a_partition_cannot_name_files_outside_its_folder(celeba):
    (celeba / "list_eval_partition.txt").write_text("../../etc/passwd 0\n")
    assert open_pictures(f"celeba:{celeba}", "train").paths == [celeba / "img_align_celeba" / "passwd"]


def test_undecodable_pictures_are_named_counted_and_skipped(celeba):
    bad = celeba / "img_align_celeba" / "000001.jpg"
    bad.write_bytes(bad.read_bytes()[:400])
    pictures = open_pictures(f"celeba:{celeba}", "train")
    assert len(pictures.take(2, 32, 32)) == 2
    assert list(pictures.skipped) == [bad]
    with pytest.raises(PictureError, match=r"3 pictures wanted.*2 of 3 files usable \(1 skipped, first .*000001.jpg: "):
        pictures.take(3, 32, 32)


def test_fewer_pictures_than_asked_for_are_enough_where_the_caller_says_so(celeba):
    assert len(open_pictures(f"celeba:{celeba}", "train").take(9, 32, 32, fewer=True)) == 3
    for path in (celeba / "img_align_celeba").iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(PictureError, match="0 of 3 files usable"):
        open_pictures(f"celeba:{celeba}", "train").take(9, 32, 32, fewer=True)


def test_identity_follows_the_file_names_not_the_place(celeba, tmp_path_factory):
    moved = tmp_path_factory.mktemp("moved") / "here"
    celeba.rename(moved)
    before = open_pictures(f"celeba:{moved}", "train").identity()
    assert before.startswith("celeba:")
    assert str(moved) not in before
    (moved / "list_eval_partition.txt").write_text("000000.jpg 0\n")
    assert open_pictures(f"celeba:{moved}", "train").identity() != before
    assert open_pictures("photos", "train").identity() == "photos"


def test_folder_splits_do_not_overlap(tmp_path):
    for i in range(11):
        write(tmp_path / f"sub{i % 2}" / f"{i:02}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    parts = {split: set(open_pictures(f"folder:{tmp_path}", split).paths) for split in ("train", "valid", "test")}
    assert [len(part) for part in parts.values()] == [7, 2, 2]
    assert len(set.union(*parts.values())) == 11


def test_a_folder_that_is_split_already_keeps_its_parts(tmp_path):
    for split, n in (("train", 3), ("valid", 1), ("test", 2)):
        for i in range(n):
            write(tmp_path / split / "sub" / f"{i}.png")
    write(tmp_path / "beside.png")  # belongs to none of them
    parts = {split: open_pictures(f"folder:{tmp_path}", split).paths for split in ("train", "valid", "test")}
    assert {split: len(part) for split, part in parts.items()} == {"train": 3, "valid": 1, "test": 2}
    assert all(tmp_path / split in path.parents for split, part in parts.items() for path in part)


@pytest.mark.parametrize("other", ["valid", "test"])
def test_a_folder_that_lacks_a_part_says_so(tmp_path, other):
    write(tmp_path / "train" / "a.png")
    write(tmp_path / other / "b.png")
    missing = {"valid": "test", "test": "valid"}[other]
    assert len(open_pictures(f"folder:{tmp_path}", other).paths) == 1
    with pytest.raises(PictureError, match=f"is split into train and {other}, and has no {missing}\nhint: make .*{missing}"):
        open_pictures(f"folder:{tmp_path}", missing)
    (tmp_path / other / "b.png").unlink()
    with pytest.raises(PictureError, match=f"{other} holds no pictures"):
        open_pictures(f"folder:{tmp_path}", other)


def test_a_folder_of_trains_is_not_split(tmp_path):
    for i in range(5):
        write(tmp_path / "train" / f"{i}.png")
    assert [len(open_pictures(f"folder:{tmp_path}", split).paths) for split in ("train", "valid", "test")] == [3, 1, 1]


@pytest.mark.parametrize("spec", ["", "photo", "celeba", "celeba:", "folder", "folder:", "http://x"])
def test_bad_specs_are_refused(spec):
    with pytest.raises(PictureError, match="data spec must be photos, celeba:FOLDER or folder:FOLDER"):
        open_pictures(spec, "train")


def test_empty_and_missing_folders_are_errors(tmp_path):
    with pytest.raises(PictureError, match="holds no pictures"):
        open_pictures(f"folder:{tmp_path}", "train")
    with pytest.raises(PictureError, match="not a folder"):
        open_pictures(f"folder:{tmp_path}/none", "train")


def test_photos_are_there_and_held_out():
    train, valid = open_pictures("photos", "train"), open_pictures("photos", "valid")
    assert not set(train.paths) & set(valid.paths)
    assert {path.stem for path in valid.paths} == {"astronaut", "chelsea", "camera"}
    crops = valid.take(7, 180, 180)
    assert crops.shape == (7, 3, 180, 180)
    assert 0 <= crops.min() < crops.max() <= 1
    assert np.array_equal(crops, open_pictures("photos", "valid").take(7, 180, 180))
    assert len({crop.tobytes() for crop in crops}) == 7


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 200), (200, 3), (181, 179), (45, 45)])
def test_crops_of_any_size(rows, columns):
    picture = np.random.default_rng(0).integers(0, 256, (rows, columns, 3), np.uint8)
    assert center_crop(picture, 44, 32).shape == (44, 32, 3)
    rng = np.random.default_rng(1)
    assert all(random_crop(picture, 44, 32, rng).shape == (44, 32, 3) for _ in range(20))


def test_center_crop_of_the_wanted_size_changes_nothing():
    picture = np.random.default_rng(0).integers(0, 256, (44, 32, 3), np.uint8)
    assert np.array_equal(center_crop(picture, 44, 32), picture)


def test_center_crop_is_centred():
    picture = np.zeros((60, 20, 3), np.uint8)
    picture[20:40] = 255
    assert (center_crop(picture, 8, 8) == 255).all()


# CelebA as people have it


def tree(root, pictures, partition, ext="jpg", line="{f} {p}\n", head="", tail="", mark=b""):
    """Thirty faces, of which every 4th of 5 is for validation and every 5th for the test."""
    (root / partition).parent.mkdir(parents=True, exist_ok=True)
    text = head
    for i in range(30):
        write(root / pictures / f"{i + 1:06}.{ext}", 218, 178, (8 * i, 90, 40))
        text += line.format(f=f"{i + 1:06}.jpg", p=(0, 0, 0, 1, 2)[i % 5])
    (root / partition).write_bytes(mark + (text + tail).encode())


ALIGNED, PARTITION = "img_align_celeba", "list_eval_partition.txt"
TREES = {
    "plain": (ALIGNED, PARTITION, {}),
    "official": (f"Img/{ALIGNED}", f"Eval/{PARTITION}", {}),
    "anno": (f"Img/{ALIGNED}", f"Anno/{PARTITION}", {}),
    "unpacked twice": (f"Img/{ALIGNED}/{ALIGNED}", f"Eval/{PARTITION}", {}),
    "a folder further down": (f"celeba/{ALIGNED}", f"celeba/{PARTITION}", {}),
    "official, further down": (f"CelebA/Img/{ALIGNED}", f"CelebA/Eval/{PARTITION}", {}),
    "kaggle": (f"{ALIGNED}/{ALIGNED}", "list_eval_partition.csv", {"line": "{f},{p}\n", "head": "image_id,partition\n"}),
    "quoted": (ALIGNED, "list_eval_partition.csv", {"line": '"{f}";"{p}"\r\n', "head": '"image_id";"partition"\r\n'}),
    "png": (f"{ALIGNED}_png", PARTITION, {"ext": "png"}),
    "png among the others": (f"Img/{ALIGNED}_png/{ALIGNED}_png", f"Eval/{PARTITION}", {"ext": "png"}),
    "converted": (ALIGNED, PARTITION, {"ext": "webp"}),
    "blank lines": (ALIGNED, PARTITION, {"tail": "\n", "line": "\n{f}  {p} \n"}),
    "lines of Windows": (ALIGNED, PARTITION, {"line": "{f} {p}\r\n", "tail": "\r\n"}),
    "byte order mark": (ALIGNED, PARTITION, {"mark": b"\xef\xbb\xbf"}),
}


@pytest.mark.parametrize("name", TREES)
def test_celeba_as_people_have_it(tmp_path, name):
    pictures, partition, options = TREES[name]
    tree(tmp_path, pictures, partition, **options)
    for split, first, n in (("train", 1, 18), ("valid", 4, 6), ("test", 5, 6)):
        found = open_pictures(f"celeba:{tmp_path}", split)
        assert [path.stem for path in found.paths[:1]] == [f"{first:06}"]
        assert len(found.paths) == n
        images = found.take(n, 20, 16)
        assert images[:, 0, 9, 9] * 255 == pytest.approx([8 * (int(path.stem) - 1) for path in found.paths], abs=4)
        assert found.skipped == {}


def test_celeba_in_utf_16(tmp_path):
    tree(tmp_path, ALIGNED, PARTITION)
    text = (tmp_path / PARTITION).read_text()
    (tmp_path / PARTITION).write_bytes(text.encode("utf-16"))
    assert len(open_pictures(f"celeba:{tmp_path}", "train").take(18, 8, 8)) == 18


def test_celebas_missing_files_are_called_missing(tmp_path):
    tree(tmp_path, "elsewhere", PARTITION)
    with pytest.raises(PictureError, match="the pictures are missing: there is no folder img_align_celeba\nhint: unpack"):
        open_pictures(f"celeba:{tmp_path}", "train")
    (tmp_path / "elsewhere").rename(tmp_path / ALIGNED)
    (tmp_path / ALIGNED / "000002.jpg").unlink()
    pictures = open_pictures(f"celeba:{tmp_path}", "train")
    assert len(pictures.take(18, 8, 8, fewer=True)) == 17
    assert list(pictures.reasons().values()) == ["the file is missing"]
    with pytest.raises(PictureError, match=r"17 of 18 files usable \(1 skipped, first .*000002.jpg: the file is missing\)"):
        pictures.take(18, 8, 8)
    with pytest.raises(PictureError, match="is not a folder"):
        open_pictures(f"celeba:{tmp_path}/none", "train")


# folders as people have them


def test_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for i in range(5):
        write(tmp_path / "pictures" / f"{i}.png")
    tree(tmp_path / "faces", ALIGNED, PARTITION)
    assert open_pictures("folder:~/pictures", "valid").paths == [tmp_path / "pictures" / "3.png"]
    assert len(open_pictures("celeba:~/faces", "valid").paths) == 6
    with pytest.raises(PictureError, match="~no-such-user/pictures is not a folder"):
        open_pictures("folder:~no-such-user/pictures", "train")


def test_linked_folders_are_followed_each_once(tmp_path):
    for i in range(10):
        write(tmp_path / "set" / "deep" / f"{i}.png", colour=(i, 0, 0))
    links = tmp_path / "links"
    links.mkdir()
    (links / "a").symlink_to(tmp_path / "set")
    (links / "b").symlink_to(tmp_path / "set")  # the same again
    (links / "self").symlink_to(".")
    (links / "up").symlink_to("..")  # from here the real one is seen without a link, but not before
    (links / "nothing").symlink_to("missing")
    found = [path for split in ("train", "valid", "test") for path in open_pictures(f"folder:{links}", split).paths]
    assert sorted(found) == [links / "a" / "deep" / f"{i}.png" for i in range(10)]
    found = [path for split in ("train", "valid", "test") for path in open_pictures(f"folder:{tmp_path}", split).paths]
    assert sorted(found) == [tmp_path / "set" / "deep" / f"{i}.png" for i in range(10)]


def test_a_linked_file_counts_once(tmp_path):
    for i in range(5):
        write(tmp_path / "real" / f"{i}.png")
        (tmp_path / f"link{i}.png").symlink_to(tmp_path / "real" / f"{i}.png")
    found = {path for split in ("train", "valid", "test") for path in open_pictures(f"folder:{tmp_path}", split).paths}
    assert found == {tmp_path / "real" / f"{i}.png" for i in range(5)}
    farm = tmp_path / "farm"
    farm.mkdir()
    for i in range(5):
        (farm / f"{i}.png").symlink_to(tmp_path / "real" / f"{i}.png")
    assert [len(open_pictures(f"folder:{farm}", split).paths) for split in ("train", "valid", "test")] == [3, 1, 1]


NAMES = (b"0_caf\xe9.png", b"1[nl].png", b"2\nnew line.png", b"3 [bold]x[red].PNG", b"4\x1b[31m.png", "5é.png".encode())


def test_any_name_is_read_and_shown(tmp_path):
    for name in NAMES:
        write(tmp_path / "x.png")
        os.rename(tmp_path / "x.png", os.path.join(os.fsencode(tmp_path), name))
    pictures = [open_pictures(f"folder:{tmp_path}", split) for split in ("train", "valid", "test")]
    assert sum(len(found.paths) for found in pictures) == len(NAMES)
    for found in pictures:
        assert len(found.take(len(found.paths), 8, 8, fewer=True)) >= 1
        assert found.skipped == {}
        assert found.identity().startswith("folder:")
    assert [shown(os.fsdecode(name)) for name in NAMES] == [
        *("0_caf\\xe9.png", "1[nl].png", "2\\nnew line.png", "3 [bold]x[red].PNG", "4\\x1b[31m.png", "5é.png")
    ]


def test_what_is_left_out_is_named_with_its_reason(tmp_path):
    for i in range(5):
        write(tmp_path / f"{i}.png")
    (tmp_path / "phone.HEIC").write_bytes(b"x")
    (tmp_path / "notes.txt").write_bytes(b"x")
    (tmp_path / "album.png").mkdir()  # a folder may be called so
    write(tmp_path / "album.png" / "6.png")
    (tmp_path / "2.png").unlink()
    (tmp_path / "2.png").symlink_to("nowhere")
    os.mkfifo(tmp_path / "3.png.tif")
    pictures = open_pictures(f"folder:{tmp_path}", "train")
    assert tmp_path / "album.png" not in pictures.paths
    assert pictures.reasons() == {str(tmp_path / "phone.HEIC"): "HEIC is not read: save it as PNG or JPEG"}
    assert pictures.remarks(3, 40, "training")[1:] == [
        f"training: 3 pictures, where 40 are usual; folder:{tmp_path} has no more"
    ]
    for split in ("train", "valid", "test"):
        found = open_pictures(f"folder:{tmp_path}", split)
        for path in found.paths:
            found.load(path)
        for path, reason in found.skipped.items():
            assert reason == {"2.png": "a link to nothing", "3.png.tif": "not a picture but a FIFO"}.get(
                path.name, "HEIC is not read: save it as PNG or JPEG"
            )
    only = tmp_path / "only"
    only.mkdir()
    (only / "phone.heic").write_bytes(b"x")
    with pytest.raises(PictureError, match=r"holds no pictures; left out: .*phone.heic: HEIC is not read"):
        open_pictures(f"folder:{only}", "train")
