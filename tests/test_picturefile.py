import os
import resource
import socket
import struct
import zlib
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from mutated_pictures import content, mutations, outcome, sources
from PIL import Image, ImageCms
from semseal.runtime import picturefile
from semseal.runtime.errors import PictureError
from semseal.runtime.jpegfile import MAX_SCANNED_PIXELS, complete_jpeg
from semseal.runtime.picturefile import MAX_PIXELS, read_picture

CASES = Path(__file__).parent / "cases"
RGB = content()
ALPHA = (np.indices(RGB.shape[:2]).sum(0) * 2).astype(np.uint8)
# how a picture that is shown upright is stored under each orientation of EXIF, by rows and columns (TIFF 6.0, page 36)
STORED = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: x.transpose(1, 0, 2)[::-1],
    7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
    8: lambda x: x.transpose(1, 0, 2)[:, ::-1],
}
LOSSLESS = {
    "JPEG": {"quality": 100, "subsampling": 0},
    "WEBP": {"lossless": True},
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
}


def plain(file):
    return np.asarray(Image.open(file).convert("RGB"))


def over_white(colour, alpha):
    alpha = alpha[..., None] / 255
    return colour * alpha + 255 * (1 - alpha)


def differs(found, wanted):
    assert found.shape == wanted.shape
    assert found.dtype == np.uint8
    return np.abs(found - wanted.astype(float)).max()


@pytest.fixture
def read(tmp_path):
    """What a picture, or the bytes of one, is read as."""

    def read(picture, kind="PNG", **options):
        file = tmp_path / "picture"
        if isinstance(picture, bytes):
            file.write_bytes(picture)
        else:
            picture.save(file, kind, **options)
        return read_picture(file)

    return read


def refused(read, match, picture, kind="PNG", **options):
    with pytest.raises(PictureError, match=match) as caught:
        read(picture, kind, **options)
    assert caught.value.hint


# what failed when tried


def test_a_turned_photograph_is_upright():
    assert differs(read_picture(CASES / "exif" / "turned.jpg"), plain(CASES / "exif" / "right.png")) <= 4  # JPEG


def test_transparent_pictures_are_over_white():
    assert differs(read_picture(CASES / "alpha" / "cutout.png"), plain(CASES / "alpha" / "white.png")) == 0
    grey, alpha = np.moveaxis(np.asarray(Image.open(CASES / "alpha" / "grey-alpha.png")), 2, 0)
    wanted = over_white(np.repeat(grey[..., None], 3, 2), alpha)
    assert differs(read_picture(CASES / "alpha" / "grey-alpha.png"), wanted) <= 1


@pytest.mark.parametrize("name", ["ramp.png", "float.tif"])
def test_deep_grey_is_scaled(name):
    assert differs(read_picture(CASES / "grey16" / name), plain(CASES / "grey16" / "right.png")) == 0


# upright


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "TIFF, LZW", "AVIF"])
def test_every_orientation_of_every_format_that_has_them(read, kind):
    quarters = np.zeros((32, 48, 3), np.uint8)
    quarters[:16, :24], quarters[:16, 24:], quarters[16:, :24], quarters[16:, 24:] = (250, 9, 9), (9, 250, 9), (9, 9, 250), 240
    options = LOSSLESS.get(kind, {}) | ({"compression": "tiff_lzw"} if "LZW" in kind else {})
    for orientation, stored in STORED.items():
        exif = Image.Exif()
        exif[274] = orientation
        found = read(Image.fromarray(np.ascontiguousarray(stored(quarters))), kind[:4], exif=exif, **options)
        assert differs(found, quarters) <= 3, orientation


def test_damaged_exif_data_never_turn_a_picture(read):
    file = BytesIO()
    Image.fromarray(RGB).save(file, "JPEG")
    for exif in (b"MM\0*\0\0\0\xff", b"II*\0\x08\0\0\0\xff\xff", b"\xff" * 40):
        segment = b"\xff\xe1" + struct.pack(">H", 8 + len(exif)) + b"Exif\0\0" + exif
        found = None
        with suppress(PictureError):  # Pillow gives up on some
            found = read(file.getvalue()[:2] + segment + file.getvalue()[2:])
        assert found is None or np.array_equal(found, read(file.getvalue()))
    exif = Image.Exif()
    exif[274] = 9
    assert differs(read(Image.fromarray(RGB), exif=exif), RGB) == 0


# grey


def tiff(values, order="<", **others):
    """A TIFF file of one strip, as written by cameras and instruments; ``others`` are tags by name."""
    names = {"compression": 259, "photometric": 262, "sample": 339}
    names |= {"tile_width": 322, "tile_height": 323, "tile_offset": 324, "tile_size": 325}
    rows, columns = values.shape
    tags = {256: columns, 257: rows, 258: 8 * values.itemsize, 259: 1, 262: 1, 277: 1, 279: values.nbytes, 339: 1}
    tags |= {names[name]: value for name, value in others.items()}
    tags[273] = 8 + 2 + 12 * (len(tags) + 1) + 4
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HIH", 42, 8, len(tags))
    for tag, value in sorted(tags.items()):
        if tag in (258, 259, 262, 277, 339):
            head += struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0)
        else:
            head += struct.pack(f"{order}HHII", tag, 4, 1, value)
    return head + bytes(4) + values.astype(values.dtype.newbyteorder(order)).tobytes()


RAMP = np.linspace(0, 65535, 48 * 64).reshape(48, 64).astype(np.uint16)
EIGHT_BITS = np.repeat(np.rint(RAMP / 257)[..., None], 3, 2)


@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bit_grey_in_either_byte_order(read, order):
    assert differs(read(tiff(RAMP, order=order)), EIGHT_BITS) == 0


def test_16_bit_grey_of_other_files(read):
    assert differs(read(Image.fromarray(RAMP)), EIGHT_BITS) == 0
    assert differs(read(Image.fromarray(RAMP), "TIFF", compression="tiff_lzw"), EIGHT_BITS) == 0
    assert differs(read(b"P5 64 48 65535\n" + RAMP.astype(">u2").tobytes()), EIGHT_BITS) == 0
    twelve = RAMP // 16
    assert (
        differs(read(b"P5 64 48 4095\n" + twelve.astype(">u2").tobytes()), np.repeat(twelve[..., None] / 4095 * 255, 3, 2)) <= 1
    )


def test_white_is_zero_and_32_bits(read):
    assert differs(read(tiff(RAMP, photometric=0)), 255 - EIGHT_BITS) <= 1
    assert differs(read(tiff(RAMP.astype(np.uint32) * 65537)), EIGHT_BITS) <= 1
    assert differs(read(tiff((RAMP / 65535).astype(np.float32), sample=3)), EIGHT_BITS) <= 1
    assert differs(read(Image.fromarray((RAMP / 65535).astype(np.float32)), "PPM"), EIGHT_BITS) <= 1


def test_a_transparent_value_of_16_bit_grey(read):
    values = RAMP.copy()
    values[:9] = 1234
    found = read(Image.fromarray(values), transparency=1234)
    assert (found[:9] == 255).all()
    assert differs(found[9:], EIGHT_BITS[9:]) == 0


@pytest.mark.parametrize(
    ("values", "sample", "match"),
    [
        (RAMP // 257, 1, "values of 0 to 255 where 65535 is white: all would be one grey"),
        (RAMP.astype(np.uint32), 1, "values of 0 to 65535 where 4.29497e"),
        (RAMP.astype(np.int16), 2, "signed integers"),
        (RAMP.astype(np.int32), 2, "signed integers"),
        (RAMP.astype(np.float32), 3, r"floats of 0 to 65535: only those in 0\.\.1 are read"),
        (RAMP.astype(np.float32) / 65535 - 0.5, 3, r"floats of -0\.5 to 0\.5"),
        (np.where(RAMP == 0, np.nan, 0).astype(np.float32), 3, "floats of nan"),
    ],
)
def test_grey_whose_white_nobody_knows_is_refused(read, values, sample, match):
    refused(read, match, tiff(values, sample=sample))


def test_black_is_black_at_every_depth(read):
    black = np.zeros((48, 64, 3), np.uint8)
    for values, sample in ((RAMP * 0, 1), (RAMP.astype(np.uint32) * 0, 1), (RAMP.astype(np.float32) * 0, 3)):
        assert differs(read(tiff(values, sample=sample)), black) == 0


# transparency


def test_alpha_and_palettes_over_white(read):
    rgba, grey_alpha = Image.fromarray(np.dstack([RGB, ALPHA])), Image.fromarray(np.dstack([RGB[..., 0], ALPHA]))
    wanted = over_white(RGB, ALPHA)
    assert differs(read(rgba), wanted) <= 1
    assert differs(read(rgba, "WEBP", lossless=True, exact=True), wanted) <= 1
    assert differs(read(rgba, "TIFF"), wanted) <= 1
    assert differs(read(rgba, "AVIF", quality=100, subsampling="4:4:4"), wanted) <= 6
    assert differs(read(grey_alpha), over_white(np.repeat(RGB[..., :1], 3, 2), ALPHA)) <= 1
    few = Image.fromarray(RGB).quantize(20)
    wanted = np.asarray(few.convert("RGB")).copy()
    wanted[np.asarray(few) == 5] = 255
    assert differs(read(few, transparency=5), wanted) == 0
    assert differs(read(few, "GIF", transparency=5), wanted) == 0
    key = tuple(RGB[7, 7].tolist())
    wanted = np.where((key == RGB).all(-1, keepdims=True), 255, RGB)
    assert differs(read(Image.fromarray(RGB), transparency=key), wanted) == 0
    bits = Image.fromarray(RGB).convert("1")
    assert differs(read(bits), np.asarray(bits.convert("RGB"))) == 0


def test_nothing_left_to_see_is_refused(read):
    refused(read, "wholly transparent", Image.fromarray(np.dstack([RGB, ALPHA * 0])))
    refused(read, "nothing of it shows over white", Image.fromarray(np.dstack([RGB * 0 + 255, ALPHA])))
    assert (read(Image.new("RGB", (9, 9), "white")) == 255).all()  # a white picture is one


# colours


def swapped_profile():
    """sRGB in which red and blue have changed places."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return srgb.replace(b"rXYZ", b"?XYZ", 1).replace(b"bXYZ", b"rXYZ", 1).replace(b"?XYZ", b"bXYZ", 1)


def test_an_embedded_profile_is_applied(read):
    for kind in ("PNG", "TIFF", "WEBP", "JPEG", "AVIF"):
        found = read(Image.fromarray(RGB), kind, icc_profile=swapped_profile(), **LOSSLESS.get(kind, {}))
        # clipped colours and the curves' tables cost a little
        assert np.abs(found - RGB[..., ::-1].astype(float)).mean() < 2, kind
    found = read(Image.fromarray(np.dstack([RGB, ALPHA])), icc_profile=swapped_profile())
    assert np.abs(found - over_white(RGB[..., ::-1], ALPHA)).mean() < 2
    grey = np.repeat(RGB[..., :1], 3, 2)
    found = read(Image.fromarray(RGB[..., 0]), icc_profile=swapped_profile())  # of RGB, in a grey picture
    assert np.abs(found - grey.astype(float)).mean() < 2


def test_profiles_that_say_nothing_leave_the_picture_as_it_is(read):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for profile in (srgb, lab, b"damaged", srgb[:200], swapped_profile()[:300], bytes(500)):
        assert differs(read(Image.fromarray(RGB), icc_profile=profile), RGB) == 0


def test_cmyk_and_lab(read):
    cmyk = Image.fromarray(RGB).convert("CMYK")
    assert differs(read(cmyk, "TIFF"), RGB) <= 1
    assert differs(read(cmyk, "JPEG", quality=100), RGB) <= 12  # chroma is halved
    assert differs(read(cmyk, "TIFF", icc_profile=swapped_profile()), RGB) <= 1  # a profile for RGB


def srgb_of_lab(lightness, a, b):
    """CIE 1976 L*a*b* of D50, by XYZ and Bradford's adaptation, to sRGB in 0..255."""
    f = np.array([(lightness + 16) / 116 + a / 500, (lightness + 16) / 116, (lightness + 16) / 116 - b / 200])
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * [0.9642, 1.0, 0.8251]
    matrix = [[3.1338561, -1.6168667, -0.4906146], [-0.9787684, 1.9161415, 0.0334540], [0.0719453, -0.2289914, 1.4052427]]
    linear = np.clip(matrix @ xyz, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def test_lab(read):
    stored = np.array([[[255, 0, 0], [137, 0, 0], [138, 70, 50], [90, 30, 200], [170, 226, 20], [0, 0, 0]]], np.uint8)
    wanted = [[srgb_of_lab(x / 2.55, *np.array([a, b], np.uint8).astype(np.int8)) for x, a, b in stored[0]]]
    assert differs(read(Image.frombytes("LAB", (6, 1), stored.tobytes()), "TIFF"), np.array(wanted)) <= 2


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "AVIF", "MPO"])
def test_the_first_frame_of_animations(read, kind):
    first, second = Image.fromarray(RGB), Image.new("RGB", RGB.shape[1::-1], (1, 2, 3))
    options = LOSSLESS.get(kind.replace("MPO", "JPEG"), {})
    found = read(first, kind, save_all=True, append_images=[second, second], **options)
    assert np.abs(found - RGB.astype(float)).mean() < (12 if kind == "GIF" else 2)  # 256 colours


# too large, damaged, no file


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bombs():
    side = 40_000
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    yield "PNG", b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 8193, 8192, 8, 2, 0, 0, 0))  # one row more than the limit
    yield "PNG just", b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(10))) + chunk(b"IEND", b"")
    most = 16382
    yield "VP8X", b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + most.to_bytes(3, "little") * 2
    yield "VP8L", b"RIFF\x1e\0\0\0WEBPVP8L\x0a\0\0\0\x2f" + (most | most << 14).to_bytes(4, "little") + bytes(9)
    yield "VP8", b"RIFF\x1e\0\0\0WEBPVP8 \x0a\0\0\0\x10\0\0\x9d\x01\x2a" + struct.pack("<HH", most, most) + bytes(9)
    yield "PPM", b"P6 40000 40000 255\n" + bytes(100)
    tile = {"tile_width": 30000, "tile_height": 30000, "tile_offset": 200, "tile_size": 90, "compression": 5}
    yield "TIFF", tiff(RGB[..., 0], **tile)
    for kind, place in (("GIF", 6), ("BMP", 18)):
        file = BytesIO()
        Image.fromarray(RGB).save(file, kind)
        data = bytearray(file.getvalue())
        data[place : place + (4 if kind == "GIF" else 8)] = struct.pack("<HH" if kind == "GIF" else "<ii", side, side)
        yield kind, bytes(data)


@pytest.mark.parametrize(("kind", "data"), list(bombs()), ids=[kind for kind, _ in bombs()])
def test_the_size_is_known_before_anything_is_decoded(read, kind, data):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(read, "too large", data)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


def test_the_largest_pictures_are_read(read, monkeypatch):
    monkeypatch.setattr(picturefile, "MAX_PIXELS", RGB.shape[0] * RGB.shape[1])
    assert differs(read(Image.fromarray(RGB)), RGB) == 0
    refused(read, f"too large: {RGB.shape[1]} x {RGB.shape[0] + 1} pixels", Image.fromarray(np.concatenate([RGB, RGB[:1]])))
    assert MAX_PIXELS > 60_000_000  # what cameras have


def test_a_file_of_too_many_bytes_is_not_read(tmp_path):
    with open(tmp_path / "x.tif", "wb") as file:
        file.truncate(picturefile.MAX_FILE_BYTES + 1)  # takes no space
    with pytest.raises(PictureError, match="too large: 536,870,913 bytes"):
        read_picture(tmp_path / "x.tif")


@pytest.mark.parametrize("name", list(sources()))
def test_a_file_that_is_cut_is_whole_or_refused(tmp_path, name):
    good = sources()[name]
    for ending in (b"", good[-2:], good[-12:]):
        for place in np.linspace(1, len(good) - 40, 12).astype(int):
            said, _, _ = outcome(good[:place] + ending, good, tmp_path)
            if ending and name.split()[0] in ("BMP", "PPM", "TIFF"):
                continue  # nothing there says that the last bytes are others
            if name == "JPEG 1" and said == "other":  # the last of its scans ends early: low bits are missing
                assert np.abs(read_picture(tmp_path / "picture") - RGB.astype(float)).mean() < 12
                continue
            assert said != "other", (place, ending)


def test_a_scan_that_ends_early_is_noticed():
    for options in ({}, {"progressive": True}, {"restart_marker_blocks": 2}):
        file = BytesIO()
        Image.fromarray(RGB).save(file, "JPEG", quality=95, **options)
        good = file.getvalue()
        complete_jpeg(good)
        with pytest.raises(PictureError, match="truncated: the file ends before the picture does"):
            complete_jpeg(good[:-300])
    scan = good.rindex(b"\xff\xd1")  # the last file has restart markers: without one, a part of it is missing
    with pytest.raises(PictureError, match="damaged: a part of the picture is missing"):
        complete_jpeg(good[:scan] + good[scan + 2 :])


def test_a_progressive_file_of_endless_scans_is_refused(read):
    file = BytesIO()
    Image.new("RGB", (4000, 4000)).save(file, "JPEG", progressive=True)
    good = file.getvalue()
    scan = good.rindex(b"\xff\xda")
    endless = good[:scan] + good[scan:-2] * (MAX_SCANNED_PIXELS // 4000**2) + good[-2:]
    refused(read, r"16,000,000 pixels in \d\d scans take too long", endless)


def test_what_is_no_picture_is_refused_with_the_reason(read):
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    for data in (b"no picture", eps, b"<svg/>", b"\0" * 400, b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xd9", b"II*\0"):
        refused(read, "not a picture in one of the formats AVIF, BMP|cannot be decoded", data)
    refused(read, "the file is empty", b"")
    refused(read, "TIFF of compression 4 is not read", Image.fromarray(RGB).convert("1"), "TIFF", compression="group4")


def test_only_regular_files_are_opened(tmp_path):
    def why(path):
        with pytest.raises(PictureError) as caught:
            read_picture(path)
        return caught.value.message

    os.mkfifo(tmp_path / "fifo.png")  # whoever opens it waits for ever
    (tmp_path / "folder.png").mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        os.chdir(tmp_path)  # names of sockets are short
        listening.bind("socket.png")
    for name, target in (("zero", "/dev/zero"), ("nothing", "missing"), ("self", "self.png"), ("pipe", "fifo.png")):
        (tmp_path / f"{name}.png").symlink_to(target)
    assert why(tmp_path / "fifo.png") == why(tmp_path / "pipe.png") == "not a picture but a FIFO"
    assert why(tmp_path / "folder.png") == "not a picture but a folder"
    assert why(tmp_path / "socket.png") == "not a picture but a socket"
    assert why(tmp_path / "zero.png") == "not a picture but a device"
    assert why(tmp_path / "nothing.png") == "a link to nothing"
    assert why(tmp_path / "self.png") == "Too many levels of symbolic links"
    assert why(tmp_path / "none.png") == "the file is missing"
    assert why(tmp_path / "a\0b.png") == "not the name of a file"
    Image.fromarray(RGB).save(tmp_path / "x.png")
    (tmp_path / "link.png").symlink_to("x.png")
    assert differs(read_picture(tmp_path / "link.png"), RGB) == 0


def test_damaged_files_are_right_or_skipped_where_the_format_can_tell(tmp_path):
    """PNG has checksums and is never another picture; nothing is where the file only ends early."""
    seen = set()
    for name, done, data, good in mutations(320):
        said, _, more = outcome(data, good, tmp_path)
        assert more < 300e6
        seen.add(said.partition(":")[0])
        if name.startswith("PNG") or done == "cut":
            assert said != "other", (name, done)
    assert seen == {"right", "skipped", "other"}
