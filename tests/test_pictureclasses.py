"""Which classes pictures are of: folders, and CelebA's lists as people have them."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from semseal.runtime.audit.matrix import QUICK
from semseal.runtime.audit.settings import Question
from semseal.runtime.audit.taken import answerable, take_pictures
from semseal.runtime.errors import PictureError
from semseal.runtime.pictureclasses import classes_of, folders_of, in_turn


def touch(folder: Path, *names: str) -> list[Path]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return [folder / name for name in names]


def test_the_first_folder_is_the_class(tmp_path):
    paths = touch(tmp_path, "cats/1.png", "cats/deep/2.png", "3.png", "dogs/4.png")
    assert folders_of(tmp_path, "valid", paths) == ("cats", "cats", "", "dogs")
    assert classes_of(f"folder:{tmp_path}", "valid", paths) == {"class": ("cats", "cats", "", "dogs")}
    assert classes_of(f"folder:{tmp_path}", "valid", paths[2:3]) == {}
    assert classes_of("photos", "valid", paths) == {}


def test_of_a_folder_that_is_split_the_folder_in_the_split_is_the_class(tmp_path):
    paths = touch(tmp_path, "valid/cats/1.png", "valid/2.png", "train/dogs/3.png")
    assert folders_of(tmp_path, "valid", paths[:2]) == ("cats", "")
    assert folders_of(tmp_path, "train", paths[2:]) == ("dogs",)


def test_a_class_may_have_the_name_of_a_split(tmp_path):
    """Without a train beside it, it splits nothing."""
    assert folders_of(tmp_path, "test", touch(tmp_path, "test/1.png", "other/2.png")) == ("test", "other")


def test_pictures_of_every_class_in_turn():
    paths = [Path(name) for name in "abcdef"]
    assert "".join(map(str, in_turn(paths, ["x", "x", "x", "y", "y", ""]))) == "adfbec"
    assert in_turn([], []) == []


TEXT = "3\nSmiling  Bald \n1.jpg  1 -1\n2.jpg -1 -1\n\n3.jpg -1  1\n"
KAGGLE = "image_id,Smiling,Bald\n1.jpg,1,-1\n2.jpg,-1,-1\n3.jpg,-1,1\n"


@pytest.mark.parametrize(("name", "text"), [("list_attr_celeba.txt", TEXT), ("Anno/list_attr_celeba.csv", KAGGLE)])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_every_attribute_of_celeba_is_a_question(tmp_path, name, text, encoding, end):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(text.replace("\n", end).encode(encoding))
    paths = [tmp_path / "img_align_celeba_png" / file for file in ("3.png", "1.png", "9.png")]
    assert classes_of(f"celeba:{tmp_path}", "valid", paths) == {"Smiling": ("no", "yes", ""), "Bald": ("yes", "no", "")}


def test_people_are_a_question(tmp_path):
    (tmp_path / "identity_CelebA.txt").write_text("1.jpg 2880\n2.jpg 12\n")
    assert classes_of(f"celeba:{tmp_path}", "test", [Path("2.jpg"), Path("1.jpg")]) == {"identity": ("12", "2880")}
    (tmp_path / "identity_CelebA.txt").write_text("image_id identity\n1.jpg 2880\n")
    assert classes_of(f"celeba:{tmp_path}", "test", [Path("1.jpg")]) == {"identity": ("2880",)}


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("list_attr_celeba.txt", "1\nSmiling\n1.jpg 2\n", 3),
        ("list_attr_celeba.txt", "1\nSmiling Bald\n1.jpg 1\n", 3),
        ("identity_CelebA.txt", "1.jpg 1\n2.jpg none\n", 2),
        ("identity_CelebA.txt", "1.jpg\n", 1),
    ],
)
def test_a_damaged_list_is_named_with_the_line(tmp_path, name, text, line):
    (tmp_path / name).write_text(text)
    with pytest.raises(PictureError, match=re.escape(f"{name}:{line}: expected 'FILE")) as raised:
        classes_of(f"celeba:{tmp_path}", "valid", [Path("1.jpg")])
    assert raised.value.hint


def test_a_class_counts_where_there_is_enough_of_it_on_both_sides():
    sent = ("a",) * 3 + ("b",) * 9 + ("c",) * 2 + ("",) * 9 + ("d",) * 9
    attackers = ("a",) * 8 + ("b",) * 9 + ("c",) * 20 + ("",) * 20 + ("d",) * 7
    assert answerable(Question("class", sent, attackers)) == ("a", "b")


def folder_of(folder: Path, classes: int, each: int) -> str:
    for i in range(classes):
        (folder / f"class{i}").mkdir(parents=True)
        for k in range(each):
            Image.new("RGB", (20, 20), (40 * i, 40 * i, k)).save(folder / f"class{i}" / f"{k:03}.png")
    return f"folder:{folder}"


def test_classes_travel_with_the_pictures_and_all_are_among_the_first(tmp_path):
    taken = take_pictures(folder_of(tmp_path, 4, 60), QUICK, 12, 16)
    (question,) = taken.questions
    assert taken.unasked == ("", "")
    assert len(question.of_sent) == len(taken.images) == 16
    assert len(question.of_attackers) == len(taken.attacker_images)
    assert sorted(question.of_sent[:4]) == ["class0", "class1", "class2", "class3"]
    for images, classes in ((taken.images, question.of_sent), (taken.attacker_images, question.of_attackers)):
        levels = [round(40 * int(name.removeprefix("class")) / 255, 3) for name in classes]
        assert np.allclose(images[:, 0, 0, 0].round(3), levels, atol=2e-3)


def test_why_nothing_can_be_asked(tmp_path):
    assert "says nothing of its pictures" in take_pictures("photos", QUICK, 12, 16).unasked[0]
    flat = folder_of(tmp_path / "flat", 1, 260)
    assert "of no two classes" in take_pictures(flat, QUICK, 12, 16).unasked[0]
    for path in list((tmp_path / "flat" / "class0").iterdir()):
        path.rename(tmp_path / "flat" / path.name)
    assert "has no folders in it" in take_pictures(flat, QUICK, 12, 16).unasked[0]
