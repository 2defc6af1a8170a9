"""Picture files of every format that is read, and the same files damaged in many ways.

python tests/mutated_pictures.py 5000      how many are right, skipped or another picture, with memory and time
"""

import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms
from semseal.runtime.errors import PictureError
from semseal.runtime.picturefile import read_picture

HEIGHT, WIDTH = 45, 61
MAX_S, MAX_BYTES = 5, 1 << 30  # for one file; a picture of the largest size allowed takes less


def content(height=HEIGHT, width=WIDTH):
    """A picture with edges, slopes and texture, and no row or column like another."""
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(0).integers(-20, 21, (height, width, 3))
    return np.clip(np.stack([4 * x, 5 * y, 128 + 60 * np.sin(x * y / 90)], axis=-1) + noise, 0, 255).astype(np.uint8)


def sources() -> dict[str, bytes]:
    """Undamaged files, by format and variant."""
    rgb = Image.fromarray(content())
    grey, mask = rgb.convert("L"), Image.fromarray(np.indices((HEIGHT, WIDTH)).sum(0).astype(np.uint8) * 2)
    rgba, grey_alpha, few = rgb.copy(), grey.convert("LA"), rgb.quantize(40)
    rgba.putalpha(mask)
    grey_alpha.putalpha(mask)
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    floats = Image.fromarray(np.asarray(grey).astype(np.float32) / 255)
    exif = Image.Exif()
    exif[274] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    extras = {"exif": exif.tobytes(), "icc_profile": profile}
    made = {
        "PNG": [
            (rgb, extras),
            (rgba, {}),
            (grey, {}),
            (grey_alpha, {}),
            (few, {"transparency": 3}),
            (deep, {}),
            (rgb.convert("1"), {}),
        ],
        "JPEG": [
            (rgb, extras),
            (rgb, {"progressive": True}),
            (grey, {}),
            (rgb.convert("CMYK"), {}),
            (rgb, {"restart_marker_blocks": 3}),
        ],
        "WEBP": [(rgb, extras), (rgba, {}), (rgb, {"lossless": True}), (rgb, {"save_all": True, "append_images": [rgba]})],
        "GIF": [
            (few, {}),
            (few, {"transparency": 3}),
            (grey, {"interlace": 0}),
            (few, {"save_all": True, "append_images": [grey]}),
        ],
        "TIFF": [
            *(
                (picture, {"compression": "raw"})
                for picture in (rgb, rgba, deep, floats, rgb.convert("LAB"), rgb.convert("CMYK"))
            ),
            *((rgb, {"compression": name}) for name in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits")),
        ],
        "BMP": [(rgb, {}), (few, {}), (rgba, {}), (grey, {})],
        "PPM": [(rgb, {}), (grey, {}), (rgb.convert("1"), {}), (deep.convert("I"), {}), (floats, {})],
        "AVIF": [(rgb, extras), (rgba, {"speed": 10}), (grey, {"speed": 10})],
    }
    files = {}
    for kind, variants in made.items():
        for i, (picture, options) in enumerate(variants):
            file = BytesIO()
            picture.save(file, kind, **options)
            files[f"{kind} {i}"] = file.getvalue()
    return files


def mutations(n: int, seed: int = 0) -> Iterator[tuple[str, str, bytes, bytes]]:
    """n times (format and variant, what was done, the damaged file, the undamaged one), every format equally often."""
    rng, files = random.Random(seed), sources()
    kinds = sorted({name.split()[0] for name in files})
    for i in range(n):
        name = rng.choice([name for name in files if name.startswith(kinds[i % len(kinds)])])
        good = files[name]
        done = rng.choice(["bits", "bytes", "numbers", "cut", "remove", "repeat", "insert", "zeros", "splice", "end"])
        data, size = bytearray(good), len(good)
        # half of all damage goes to the first bytes, where sizes and kinds are said
        place = rng.randrange(min(size, 200)) if rng.random() < 0.5 else rng.randrange(size)
        some = rng.randint(1, max(size // 3, 1))
        if done == "bits":
            for _ in range(rng.randint(1, 8)):
                data[rng.randrange(size) if rng.random() < 0.5 else place] ^= 1 << rng.randrange(8)
        elif done == "bytes":
            data[place : place + rng.randint(1, 16)] = rng.randbytes(rng.randint(1, 16))
        elif done == "numbers":
            value = rng.choice([0, 1, 0x7F, 0xFF, 0x100, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
            width = rng.choice([1, 2, 4])
            data[place : place + width] = (value & (1 << 8 * width) - 1).to_bytes(width, rng.choice(["little", "big"]))
        elif done == "cut":
            del data[place:]
        elif done == "remove":
            del data[place : place + some]
        elif done == "repeat":
            data[place:place] = data[place : place + some]
        elif done == "insert":
            data[place:place] = rng.randbytes(rng.randint(1, 40))
        elif done == "zeros":
            data[place:] = bytes(size - place)
        elif done == "splice":
            other = files[rng.choice([other for other in files if other.startswith(name.split()[0])])]
            data[place:] = other[rng.randrange(len(other)) :]
        else:
            data[place:] = data[-2:]  # cut, and ended as if it were whole
        yield name, done, bytes(data), good


def outcome(data: bytes, good: bytes, folder: Path) -> tuple[str, float, int]:
    """What a damaged file gives ("right" like the good one, "other", or the reason why it is skipped), seconds, bytes more."""
    file = folder / "picture"
    file.write_bytes(good)
    wanted = read_picture(file)
    file.write_bytes(data)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    try:
        found = read_picture(file)
        said = "right" if np.array_equal(found, wanted) else "other"
    except PictureError as error:
        said = f"skipped: {error.message}"
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return said, seconds, (after - before) * 1024


def main(n: int, seed: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
    counts: Counter[tuple[str, str]] = Counter()
    reasons: Counter[str] = Counter()
    longest, largest, others = (0.0, ""), (0, ""), Counter()
    with tempfile.TemporaryDirectory() as folder:
        for name, done, data, good in mutations(n, seed):
            said, seconds, more = outcome(data, good, Path(folder))
            kind = said.partition(":")[0]
            counts[name.split()[0], kind] += 1
            reasons[said if len(said) < 60 else said[:60]] += 1
            if kind == "other":
                others[name, done] += 1
            longest, largest = max(longest, (seconds, f"{name} {done}")), max(largest, (more, f"{name} {done}"))
    for kind in sorted({kind for kind, _ in counts}):
        print(kind, {said: counts[kind, said] for said in ("right", "skipped", "other")})
    print(f"longest {longest[0]:.2f} s ({longest[1]}), most memory more {largest[0] / 1e6:.0f} MB ({largest[1]})")
    for reason, count in reasons.most_common(40):
        print(f"{count:5} {reason}")
    for (name, done), count in sorted(others.items()):
        print(f"other {name} {done}: {count}")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1)
