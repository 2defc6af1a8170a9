import dataclasses

import numpy as np
import pytest
from PIL import Image
from semseal.runtime.audit.matrix import FULL, QUICK
from semseal.runtime.audit.taken import MIN_ATTACKER_PICTURES, MIN_FILES, MIN_PICTURES, take_pictures
from semseal.runtime.errors import PictureError
from semseal.runtime.pictures import open_pictures


def folder_of(place, n):
    """Pictures of one grey each, which says their number."""
    place.mkdir(exist_ok=True)
    for i in range(n):
        Image.new("RGB", (16, 12), (i, i, i)).save(place / f"{i:03}.png")
    return f"folder:{place}"


def numbers(images):
    return np.rint(images[:, 0, 0, 0] * 255).astype(int).tolist()


def test_few_pictures_are_taken_and_said(tmp_path, capsys):
    data = folder_of(tmp_path / "p", 90)
    taken = take_pictures(data, QUICK, 12, 16)
    assert numbers(taken.images) == [*range(3, 83, 5)]
    assert numbers(taken.attacker_images[:18]) == [*range(4, 90, 5)]
    assert sorted(numbers(taken.attacker_images[18:])) == [i for i in range(90) if i % 5 < 3]  # those of training, once
    assert taken.settings == dataclasses.replace(QUICK, pictures=16, attacker_pictures=72)
    said = "there are no more in " + data + "; a full audit takes a folder of 1,000 pictures, --quick one of 250"
    assert taken.skipped == {"128 of 200 attacker's images": said}
    assert capsys.readouterr().err == f"skipped 128 of 200 attacker's images: {said}\n"


def test_fewer_of_both(tmp_path):
    taken = take_pictures(folder_of(tmp_path / "p", 77), FULL, 12, 16)
    assert (taken.settings.pictures, taken.settings.optimised_pictures, taken.settings.attacker_pictures) == (14, 14, 62)
    assert list(taken.skipped) == ["186 of 200 pictures to measure on", "738 of 800 attacker's images"]
    assert len(taken.images) == 14  # of 15: they are sent in pairs


def test_enough_pictures_are_those_of_the_parts_alone(tmp_path, capsys):
    data = folder_of(tmp_path / "p", 250)
    taken = take_pictures(data, dataclasses.replace(QUICK, attacker_pictures=50), 12, 16)
    assert np.array_equal(taken.images, open_pictures(data, "valid").take(16, 12, 16))
    assert np.array_equal(taken.attacker_images, open_pictures(data, "test").take(50, 12, 16, seed=1))
    assert taken.skipped == {}
    assert capsys.readouterr().err == ""
    assert take_pictures(data, QUICK, 12, 16).skipped == {}  # as the message says
    photos = take_pictures("photos", QUICK, 12, 16)
    assert photos.settings == QUICK
    assert photos.skipped == {}


@pytest.mark.parametrize("enough", [False, True])
def test_the_fewest_pictures(tmp_path, enough):
    data = folder_of(tmp_path / "p", MIN_FILES - 1 + enough)
    settings = dataclasses.replace(QUICK, pictures=MIN_PICTURES)
    if enough:
        assert len(take_pictures(data, settings, 12, 16).attacker_images) == MIN_ATTACKER_PICTURES
        return
    with pytest.raises(PictureError, match="an audit needs 6 pictures to measure on and 40 for Eve, and there are 6 and 39"):
        take_pictures(data, settings, 12, 16)


def test_too_few_usable_pictures_say_why(tmp_path):
    data = folder_of(tmp_path / "p", 60)
    for i in range(0, 60, 2):
        (tmp_path / "p" / f"{i:03}.png").write_bytes(b"")
    match = r"there are 6 and 24; 30 skipped, first .*\.png: the file is empty\nhint: give a folder of at least 50 pictures"
    with pytest.raises(PictureError, match=match):
        take_pictures(data, QUICK, 12, 16)
