"""Recordings of a real link, through the writer of semseal send and receive, and attacked from their files."""

import contextlib
import dataclasses
import json
import math
import warnings

import numpy as np
import pytest
from PIL import Image
from semseal.runtime import channel
from semseal.runtime.attacks.whitebox import WhiteBoxSettings
from semseal.runtime.audit.matrix import QUICK
from semseal.runtime.audit.recorded import RECORDED, audit_recording
from semseal.runtime.audit.recording import RecordedFrame, places, read_recording
from semseal.runtime.errors import AuditError, BundleError, PictureError
from semseal.runtime.frame import Frame
from semseal.runtime.link import BrokenDefenseWarning, Transmitter
from semseal.runtime.net.record import Recording
from semseal.runtime.pictures import open_pictures, to_float
from semseal.runtime.trust.keyset import new_keyset, write_keyset

KEY = bytes(range(32))
PICTURES = 40  # 20 pairs
SHORT = WhiteBoxSettings(3, 0.1, True)
FAST = dataclasses.replace(
    QUICK, pictures=PICTURES, attacker_pictures=120, optimised_pictures=6, whitebox=SHORT, matching=SHORT,
    blackbox_steps=40, learned_steps=1,
)  # fmt: skip
CHEAP = dataclasses.replace(FAST, attacks=("no-key", "row-ordering"))


@pytest.fixture(scope="module")
def sent(tmp_path_factory):
    """A folder of pictures as the link takes them, so that nothing is scaled, one that cannot be read among them."""
    folder = tmp_path_factory.mktemp("sent")
    pixels = np.rint(open_pictures("photos", "valid").take(PICTURES, 32, 24) * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    for i, picture in enumerate(pixels):
        Image.fromarray(picture).save(folder / f"{i:03}.png")
    (folder / "007b.png").write_bytes(b"no picture")
    return folder, to_float(list(pixels))


def frames_of(bundle, images, defense="none", each=True, snr_db=20.0, key=KEY):
    """As semseal send makes them, a call for ``each`` picture, and behind a channel unless ``snr_db`` is None."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BrokenDefenseWarning)
        tx = Transmitter(bundle, None if defense == "none" else key, defense)
    frames = [frame for image in images for frame in tx.send(image[None])] if each else tx.send(images)
    if snr_db is None:
        return frames
    rng, unbiased = np.random.default_rng(5), tx.bundle.has_scale
    return [Frame(channel.transmit("awgn", f.symbols[None], snr_db, rng, unbiased=unbiased)[0], f.header) for f in frames]


def record(path, frames, role="receiver"):
    with Recording(path, role, "small") as recording:
        for frame in frames:
            recording.add(frame.header, frame.symbols)
    return path


def rows_of(results):
    return {(row.attack, row.supposed): row for row in results.rows}


# what is seen


def test_of_an_undefended_link_everything_is_seen(small_bundle, sent, tmp_path):
    folder, images = sent
    air = record(tmp_path / "air", frames_of(small_bundle, images))
    asked = dataclasses.replace(FAST, attacks=("white-box", "black-box", *CHEAP.attacks))
    results = audit_recording(small_bundle, air, "photos", tmp_path / "out", asked, sent=[folder])
    rows = rows_of(results)
    assert results.snr_db == pytest.approx(20, abs=3)  # of 3,840 symbols
    assert results.frames == results.attacked == PICTURES
    assert {attack for attack, _ in rows} == {*asked.attacks, "mean-picture"}
    for attack in ("no-key", "row-ordering"):
        assert rows[attack, "none"].verdict == "sees", attack
    assert rows["black-box", "none"].matching_advantage_db > 0.1
    assert rows["no-key", "none"].psnr > rows["mean-picture", "none"].psnr + 2
    assert results.verdict == "falls"
    assert "substitution" in results.left_out  # a call for each picture makes no pairs
    text = json.loads((tmp_path / "out" / "results.json").read_text())
    assert text["rows"][1]["psnr"] == results.rows[1].psnr
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Eve sees what was sent" in page
    assert page.count("<img") == 12 + 6 + 3 * 12  # sent, white-box, the others


def test_of_the_papers_defence_row_ordering_sees_both_streams(small_bundle, sent, tmp_path):
    folder, images = sent
    air = record(tmp_path / "air", frames_of(small_bundle, images, "permute+substitute", each=False))
    results = audit_recording(small_bundle, air, "photos", tmp_path / "out", CHEAP, sent=[folder])
    rows = rows_of(results)
    assert rows["row-ordering", "permute+substitute"].verdict == "sees"
    assert rows["no-key", "none"].matching_advantage_db < rows["row-ordering", "permute+substitute"].matching_advantage_db
    assert results.verdict == "falls"


def test_of_mix_nothing_is_seen_and_a_control_says_that_it_could_be(small_bundle, sent, tmp_path):
    folder, images = sent
    write_keyset(tmp_path / "link.key", new_keyset("one-way", "mix"))
    frames = frames_of(small_bundle, images, "mix", key=tmp_path / "link.key")  # each in a session of its own
    air = record(tmp_path / "air", frames)
    assert len({found.session for found in read_recording(air, {1024}).frames}) == PICTURES
    results = audit_recording(small_bundle, air, "photos", tmp_path / "out", CHEAP, sent=[folder])
    assert {row.supposed for row in results.rows[1:]} == {"mix"}
    assert {row.verdict for row in results.rows[1:]} <= {"nothing", "open"}
    assert all(abs(row.matching_advantage_db) < 4 * row.matching_advantage_95 for row in results.rows[1:])
    assert results.verdict in ("holds with gaps", "undecided")
    assert results.attacked == PICTURES
    assert not any("says that its model" in line for line in results.headline)
    assert "That is no proof" in (page := (tmp_path / "out" / "report.html").read_text()) or "Undecided" in page


def test_a_model_whose_scale_is_in_the_header_is_attacked_without_it(edge_bundle, sent, tmp_path):
    folder, images = sent
    air = record(tmp_path / "air", frames_of(edge_bundle, images))
    asked = dataclasses.replace(FAST, attacks=("white-box", "black-box", "no-key"))
    results = audit_recording(edge_bundle, air, "photos", tmp_path / "out", asked, sent=[folder])
    rows = rows_of(results)
    assert rows["no-key", "none"].verdict == "sees"
    assert rows["black-box", "none"].matching_advantage_db > 0.1
    assert rows["white-box", "none"].psnr > 0


def test_without_the_pictures_nothing_is_scored_and_all_is_shown(small_bundle, sent, tmp_path):
    air = record(tmp_path / "air", frames_of(small_bundle, sent[1][:5], snr_db=None), "sender")
    results = audit_recording(small_bundle, tmp_path / "air.sigmf-data", "photos", tmp_path / "out", FAST)
    assert results.snr_db is None
    assert "40 dB" in results.snr_missing
    assert {row.attack for row in results.rows} == set(RECORDED)
    assert all((row.psnr, row.verdict, row.pictures) == (None, None, 5) and "--sent" in row.missing for row in results.rows)
    text = json.loads((tmp_path / "out" / "results.json").read_text())
    assert text["verdict"] is None
    assert "not known" in text["verdict_missing"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<img") == 5 * len(results.rows)
    again = audit_recording(small_bundle, air, "photos", tmp_path / "out", CHEAP, sent=[sent[0]])  # into the same folder
    assert again.verdict is None  # of five pictures
    assert again.rows[1].psnr > again.rows[0].psnr


def test_eve_may_know_that_there_is_no_noise_where_there_is_none(small_bundle, sent, tmp_path):
    folder, images = sent
    stored = dataclasses.replace(CHEAP, eve_snrs=(math.inf,))
    air = record(tmp_path / "air", frames_of(small_bundle, images, snr_db=None), "sender")
    results = audit_recording(small_bundle, air, "photos", tmp_path / "out", stored, sent=[folder])
    assert "as she knows" in results.snr_missing
    assert rows_of(results)["row-ordering", "none"].verdict == "sees"
    noisy = record(tmp_path / "noisy", frames_of(small_bundle, images))
    with pytest.raises(AuditError, match="has noise, about that of") as raised:
        audit_recording(small_bundle, noisy, "photos", tmp_path / "other", stored, sent=[folder])
    assert "leave out --eve-snr none" in raised.value.hint


def test_of_frames_of_two_sizes_the_defence_chooses(small_bundle, edge_bundle, sent, tmp_path):
    mixed, plain = (frames_of(small_bundle, sent[1][:n], defense) for n, defense in ((3, "mix"), (4, "none")))
    air = record(tmp_path / "air", [*mixed, *plain])
    for supposed, attacked in (([], 3), (["mix"], 3), (["none"], 4)):
        results = audit_recording(small_bundle, air, "photos", tmp_path / "out", CHEAP, supposed)
        assert (results.attacked, len(results.rows)) == (attacked, 2)
        assert f"{7 - attacked} frames" in results.left_out
    other = audit_recording(edge_bundle, air, "photos", tmp_path / "out", CHEAP)  # of frames of the same size
    assert "its model is small, and it was attacked with the bundle edge" in other.headline[-1]


# which frame is which picture


def frame(counter, sender=b"a" * 8, start=0):
    return RecordedFrame(start, sender + bytes(8), counter)


def test_frames_find_their_places():
    each = [frame(2 * i) for i in (0, 1, 3, 4)]  # the third was lost
    assert list(places(each, 5)[0].values()) == [0, 1, 3, 4]
    assert list(places([frame(i) for i in range(4)], 4)[0].values()) == [0, 1, 2, 3]
    odd = [frame(i) for i in range(4)]  # a noise tensor at the end
    assert list(places(odd, 3)[0].values()) == [0, 1, 2]
    assert places([frame(i) for i in range(5)], 3)[0] == {}


def test_what_cannot_be_aligned_is_said_and_left_out():
    again = [frame(2 * i) for i in range(6)]
    found, left_out = places(again, 5)
    assert found == {}
    assert "counted 6, and 5 pictures were sent" in next(iter(left_out.values()))
    rest = [frame(2 * i, b"b" * 8) for i in range(2)]  # of a sender that began anew: nothing says where
    found, left_out = places([*again[:5], *rest], 5)
    assert list(found) == again[:5]
    assert "several senders" in next(iter(left_out.values()))
    twice = [frame(2 * i, b"c" * 8) for i in range(5)]
    found, left_out = places([*again[:5], *twice], 5)
    assert list(found) == again[:5]
    assert next(iter(left_out.items())) == (f"5 frames of the sender {(b'c' * 8).hex()}, again",
                                            "an earlier sender sent the same pictures")  # fmt: skip


def test_lost_repeated_and_broken_frames_cost_only_themselves(small_bundle, sent, tmp_path):
    folder, images = sent
    frames = frames_of(small_bundle, images)
    loud = Frame(np.full_like(frames[9].symbols, 1e6), frames[9].header)
    nothing = Frame(np.full_like(frames[11].symbols, np.nan), frames[11].header)
    air = record(tmp_path / "air", [*frames[12:], *frames[:9], loud, nothing, frames[3], *frames[7:9]])
    results = audit_recording(small_bundle, air, "photos", tmp_path / "out", CHEAP, sent=[folder])
    assert (results.frames, results.attacked) == (PICTURES - 1, PICTURES - 3)
    assert results.left_out["3 frames, again"]
    assert "not finite" in results.left_out["2 frames that no receiver takes"]
    assert rows_of(results)["no-key", "none"].verdict == "sees"
    few = audit_recording(small_bundle, air, "photos", tmp_path / "out", dataclasses.replace(CHEAP, pictures=8), sent=[folder])
    assert few.attacked == 8
    assert few.left_out[f"{PICTURES - 9} further frames"] == "8 are attacked; --pictures takes more"


def test_frames_of_another_folder_are_not_scored(small_bundle, sent, tmp_path):
    (tmp_path / "others").mkdir()
    for i in range(7):
        Image.fromarray(np.full((32, 24, 3), 30 * i, np.uint8)).save(tmp_path / "others" / f"{i}.png")
    air = record(tmp_path / "air", frames_of(small_bundle, sent[1]))
    results = audit_recording(small_bundle, air, "photos", tmp_path / "out", CHEAP, sent=[tmp_path / "others"])
    assert results.verdict is None
    assert "no frame can be aligned" in results.verdict_missing
    assert any(f"{PICTURES}, and 7 pictures" in why for why in results.left_out.values())


# what a stranger may hand in


@pytest.fixture
def air(small_bundle, sent, tmp_path):
    return record(tmp_path / "air", frames_of(small_bundle, sent[1][:3], snr_db=None))


def change(air, **about):
    """The metadata with other values; ``annotation`` are those of the second frame, ``also`` more of them."""
    meta = air.with_name("air.sigmf-meta")
    found = json.loads(meta.read_text())
    found["annotations"][1] |= about.pop("annotation", {})
    found["annotations"] += about.pop("also", [])
    found["captures"][0] |= about.pop("capture", {})
    found["global"] |= {f"core:{key}": value for key, value in about.items()}
    meta.write_text(json.dumps(found))


REFUSED = {
    "a datatype": ({"datatype": "ci16_le"}, "core:datatype is ci16_le, which is not read here"),
    "no datatype": ({"datatype": "image"}, r"no SigMF: .*core:datatype"),
    "channels": ({"num_channels": 2}, "core:num_channels is 2"),
    "another file": ({"dataset": "passwd"}, "core:dataset is passwd"),
    "headers": ({"capture": {"core:header_bytes": 8}}, "headers of their own"),
    "a frame beyond the end": ({"annotation": {"core:sample_count": 2**62}}, "annotation 1 is not within the data"),
    "a frame before it": ({"annotation": {"core:sample_start": -1}}, "no SigMF|not within"),
    "half a symbol": ({"annotation": {"core:sample_start": 0.5}}, "no SigMF|not within"),
    "another size": ({"annotation": {"core:sample_count": 95}}, "a frame of 95 symbols, and this model sends 96 or 1024"),
    "a session that is none": ({"annotation": {"semseal:session": "../../x"}}, r"semseal:session is \.\./\.\./x"),
    "a session of lists": ({"annotation": {"semseal:session": [[]]}}, "semseal:session is a list"),
    "a counter that is none": ({"annotation": {"semseal:counter": True}}, "semseal:counter is True"),
    "a large counter": ({"annotation": {"semseal:counter": 2**64}}, "semseal:counter is 18446744073709551616"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_metadata_that_do_not_fit_are_one_error(air, kind):
    about, message = REFUSED[kind]
    change(air, **about)
    with pytest.raises(AuditError, match=message) as raised:
        read_recording(air, {96, 1024})
    assert raised.value.hint


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"global": NaN}', b"1" * 5000,
                                  b'{"global": {}, "captures": [], "annotations": []}', b" " * 2**26 + b"{}"])  # fmt: skip
def test_metadata_that_are_none_are_one_error(air, text):
    air.with_name("air.sigmf-meta").write_bytes(text)
    with pytest.raises(AuditError, match=r"no SigMF|bytes"):
        read_recording(air, {96})


def test_any_byte_that_is_changed_is_read_or_refused(air):
    meta = air.with_name("air.sigmf-meta")
    whole, rng = meta.read_bytes(), np.random.default_rng(0)
    read = 0
    for _ in range(300):
        text = bytearray(whole)
        text[rng.integers(len(text))] = rng.integers(256)
        meta.write_bytes(text)
        with contextlib.suppress(AuditError):
            read += len(read_recording(air, {96, 1024}).frames) > 0
    assert 0 < read < 300


def test_what_is_no_frame_is_left_out(air):
    change(air, also=[{"core:sample_start": 288, "core:label": "the end"}])
    found = read_recording(air, {96})
    assert len(found.frames) == 3
    assert "no frames" in found.left_out["1 annotations"]


def test_files_that_are_not_there_or_no_files(small_bundle, air, tmp_path):
    data = air.with_name("air.sigmf-data")
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(AuditError, match="annotation 2 is not within the data, which have 287 symbols"):
        read_recording(air, {96})
    data.unlink()
    with pytest.raises(FileNotFoundError, match=r"air\.sigmf-data"):
        read_recording(air, {96})
    data.mkdir()
    with pytest.raises((AuditError, IsADirectoryError), match=r"air\.sigmf-data"):
        read_recording(air, {96})
    with pytest.raises(AuditError, match="there is no recording"):
        read_recording(tmp_path / "gone", {96})
    with pytest.raises(AuditError, match="archive"):
        read_recording(tmp_path / "air.sigmf", {96})


def test_what_cannot_be_attacked_is_said_before_anything_is_written(small_bundle, edge_bundle, air, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(AuditError, match="has 96 symbols, as under mix it has not"):
        audit_recording(small_bundle, air, "photos", out, CHEAP, ["mix"])
    with pytest.raises(AuditError, match="identification: not for recordings"):
        audit_recording(small_bundle, air, "photos", out, dataclasses.replace(CHEAP, attacks=("identification",)))
    with pytest.raises(PictureError, match="gone"):
        audit_recording(small_bundle, air, "photos", out, CHEAP, sent=[tmp_path / "gone"])
    with pytest.raises(BundleError):
        audit_recording(tmp_path / "nothing", air, "photos", out, CHEAP)
    data = air.with_name("air.sigmf-data")
    data.write_bytes((0.1 * np.frombuffer(data.read_bytes(), "<c8")).astype("<c8").tobytes())
    with pytest.raises(AuditError, match=r"has a power of 0\.01"):
        audit_recording(small_bundle, air, "photos", out, CHEAP)
    assert not out.exists()
    (tmp_path / "thesis").mkdir()
    for name, text in (("thesis.txt", "mine"), ("results.json", '{"what": "semseal bench"}')):
        (tmp_path / "thesis" / name).write_text(text)
        with pytest.raises(AuditError, match="neither empty nor of a recording"):
            audit_recording(small_bundle, air, "photos", tmp_path / "thesis", CHEAP)
        (tmp_path / "thesis" / name).unlink()
