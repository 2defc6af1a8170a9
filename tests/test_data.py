import json
import resource

import numpy as np
import pytest
import torch
from PIL import Image
from semseal.runtime.errors import PictureError
from semseal.runtime.pictures import center_crop, open_pictures
from semseal.train.data import BYTES, TABLE, Crops, ahead, decode, forget, to_images


def save(path, rows, columns, seed=0):
    """A picture whose pixel says where it is: red the row, green the column (both modulo 256)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = np.empty((rows, columns, 3), np.uint8)
    picture[..., 0], picture[..., 1], picture[..., 2] = np.arange(rows)[:, None] % 256, np.arange(columns) % 256, seed
    Image.fromarray(picture).save(path)
    return picture


def scenes(folder, *sizes):
    for i, (rows, columns) in enumerate(sizes):
        save(folder / "train" / f"{i}.png", rows, columns, i)
    save(folder / "valid" / "v.png", 40, 40)
    return open_pictures(f"folder:{folder}", "train")


def decoded(pictures, height, width, place):
    place.mkdir(exist_ok=True)
    reports = []
    skipped = decode(pictures, height, width, place, lambda done, of: reports.append((done, of)))
    return reports, skipped


def sizes_of(place):
    return [[tuple(level[1:]) for level in levels] for levels in json.loads((place / TABLE).read_text())["sizes"]]


def test_crops_depend_on_seed_step_and_device_alone(tmp_path):
    pictures = scenes(tmp_path / "p", (64, 64), (80, 50))
    decoded(pictures, 16, 24, tmp_path / "run")

    def crops(seed=0, rank=0):
        return Crops(tmp_path / "run", 4, 16, 24, seed, rank)

    one = crops()
    assert one[7].shape == (4, 16, 24, 3)
    assert np.array_equal(one[7], crops()[7])
    for other in (one[8], crops(seed=1)[7], crops(rank=1)[7]):
        assert not np.array_equal(one[7], other)
    forget(tmp_path / "run")
    decoded(pictures, 16, 24, tmp_path / "run")  # again, in whatever order the threads came
    assert np.array_equal(one[7], crops()[7])


def test_crops_are_parts_of_the_picture_and_reach_its_edges(tmp_path):
    pictures = scenes(tmp_path / "p", (50, 40))
    decoded(pictures, 16, 24, tmp_path / "run")
    places = set()
    for crop in np.concatenate([Crops(tmp_path / "run", 16, 16, 24, 0, 0)[step] for step in range(60)]):
        top, left = crop[0, 0, 0], crop[0, 0, 1]
        assert np.array_equal(crop[..., 0], np.broadcast_to(np.arange(top, top + 16)[:, None], (16, 24)))
        assert np.array_equal(crop[..., 1], np.broadcast_to(np.arange(left, left + 24), (16, 24)))
        places.add((int(top), int(left)))
    tops, lefts = zip(*places, strict=True)
    assert (min(tops), max(tops)) == (0, 34)
    assert (min(lefts), max(lefts)) == (0, 16)


@pytest.mark.parametrize(
    ("size", "levels"),
    [
        ((300, 400), [(300, 400)]),
        ((800, 600), [(800, 600), (566, 424), (400, 300)]),
        ((362, 362), [(362, 362), (256, 256)]),
        ((1600, 1500), [(1545, 1448), (1092, 1024), (772, 724), (546, 512), (386, 362), (273, 256)]),
        ((30, 100), [(30, 100)]),  # smaller than the smallest level: as it is
        ((12, 100), [(16, 24)]),  # too small: enlarged
        ((1, 3000), [(16, 24)]),
    ],
)
def test_scenes_are_kept_at_several_sizes(tmp_path, size, levels):
    decoded(scenes(tmp_path / "p", size), 16, 24, tmp_path / "run")
    assert sizes_of(tmp_path / "run") == [levels]
    assert (tmp_path / "run" / BYTES).stat().st_size == sum(rows * columns * 3 for rows, columns in levels)
    assert Crops(tmp_path / "run", 2, 16, 24, 0, 0)[0].shape == (2, 16, 24, 3)


def test_no_size_is_smaller_than_the_crops(tmp_path):
    decoded(scenes(tmp_path / "p", (800, 600)), 320, 320, tmp_path / "run")
    assert sizes_of(tmp_path / "run") == [[(800, 600), (566, 424)]]


def test_whole_pictures_are_centred_crops(tmp_path):
    faces = [save(tmp_path / "img_align_celeba" / f"{i}.png", 218, 178, i) for i in range(3)]
    (tmp_path / "list_eval_partition.txt").write_text("0.png 0\n1.png 0\n2.png 0\n")
    pictures = open_pictures(f"celeba:{tmp_path}", "train")
    decoded(pictures, 32, 24, tmp_path / "run")
    assert sizes_of(tmp_path / "run") == [[(32, 24)]] * 3
    wanted = {center_crop(face, 32, 24).tobytes() for face in faces}
    crops = Crops(tmp_path / "run", 20, 32, 24, 0, 0)[0]
    assert {crop.tobytes() for crop in crops} == wanted


def test_pictures_are_decoded_once(tmp_path):
    pictures = scenes(tmp_path / "p", (40, 40), (50, 50))
    assert decoded(pictures, 16, 16, tmp_path / "run") == ([(1, 2), (2, 2)], {})
    before = Crops(tmp_path / "run", 4, 16, 16, 0, 0)[0]
    for path in pictures.paths:
        path.unlink()
    assert decoded(pictures, 16, 16, tmp_path / "run") == ([], {})  # as a resumed run does
    assert np.array_equal(before, Crops(tmp_path / "run", 4, 16, 16, 0, 0)[0])
    forget(tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []
    forget(tmp_path / "run")


def test_what_cannot_be_decoded_is_skipped_with_its_reason(tmp_path):
    pictures = scenes(tmp_path / "p", (40, 40), (40, 40))
    pictures.paths[0].write_bytes(b"no picture")
    for _ in range(2):  # a resumed run knows it too
        _, skipped = decoded(pictures, 16, 16, tmp_path / "run")
        assert list(skipped) == [str(pictures.paths[0])]
    assert sizes_of(tmp_path / "run") == [[], [(40, 40)]]
    assert (Crops(tmp_path / "run", 8, 16, 16, 0, 0)[0][..., 2] == 1).all()
    pictures.paths[1].write_bytes(b"no picture")
    with pytest.raises(PictureError, match=r"none of the 2 files can be decoded"):
        decoded(open_pictures(f"folder:{tmp_path / 'p'}", "train"), 16, 16, tmp_path / "other")
    assert list((tmp_path / "other").iterdir()) == []


def test_an_interrupted_or_refused_decoding_leaves_nothing(tmp_path):
    pictures = scenes(tmp_path / "p", (40, 40), (50, 50), (60, 60))
    (tmp_path / "run").mkdir()

    def stop(done, of):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decode(pictures, 16, 16, tmp_path / "run", stop)
    assert list((tmp_path / "run").iterdir()) == []
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, hard))
    try:
        with pytest.raises(OSError, match=r"pictures\.u8"):  # the name that the program prints
            decoded(pictures, 16, 16, tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list((tmp_path / "run").iterdir()) == []
    decoded(pictures, 16, 16, tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [TABLE, BYTES]


@pytest.mark.parametrize(("start", "stop"), [(0, 0), (0, 1), (3, 3), (2, 20)])
def test_batches_come_in_the_order_of_the_steps(tmp_path, start, stop):
    decoded(scenes(tmp_path / "p", (40, 40)), 16, 16, tmp_path / "run")
    crops = Crops(tmp_path / "run", 2, 16, 16, 0, 0)
    batches = list(ahead(crops, start, stop))
    assert len(batches) == stop - start
    for step, batch in enumerate(batches, start):
        assert np.array_equal(batch, crops[step])


@pytest.mark.parametrize(("turn", "width", "ways"), [(False, 8, 2), (True, 8, 8), (True, 12, 4)])
def test_images_are_turned_in_every_way_that_is_asked_for(turn, width, ways):
    crop = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (8, width, 3), np.uint8))
    images = to_images(crop.expand(200, -1, -1, -1), turn, torch.Generator().manual_seed(0))
    upright = crop.permute(2, 0, 1) / 255
    possible = [upright.flip(axes) for axes in ((), (2,), (1,), (1, 2))]
    possible += [picture.transpose(1, 2) for picture in possible] if width == 8 else []
    seen = {next(i for i, picture in enumerate(possible) if torch.equal(picture, image)) for image in images}
    assert seen == set(range(8) if ways == 8 else range(ways))
    assert images.dtype == torch.float32
