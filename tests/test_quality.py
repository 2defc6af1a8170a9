"""The comparison with digital links: what goes wrong there goes wrong silently, in somebody's favour."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper
from PIL import Image
from semseal.export.bundle import export_model
from semseal.runtime.link import Receiver, Transmitter
from semseal.runtime.metrics import Proportion, psnr
from semseal.runtime.pictures import open_pictures
from semseal.runtime.signing import owner_key

pytest.importorskip("sionna", reason="sionna-no-rt is not installed: in the source folder, pip install '.[quality]'")
pytest.importorskip("pytorch_msssim", reason="pytorch-msssim is not installed: in the source folder, pip install '.[quality]'")

import cost
import quality
import rivals
from cost import arithmetic, graph_cost
from scores import Scores, score
from semseal.runtime.audit.coding import (
    CODECS,
    CRC_BITS,
    Encodings,
    Framing,
    Mcs,
    Modem,
    _file,
    _settings,
    capacity,
    open_file,
    pack,
    table,
    unpack,
)

SPEED = 10  # AVIF's fastest


@pytest.fixture(scope="module")
def images():
    return open_pictures("photos", "valid").take(3, 180, 180)


@pytest.fixture(scope="module")
def picture(images):
    return rivals.to_bytes(images)[1, :96, :64]


def test_capacity_and_the_table():
    assert capacity(0) == 1
    assert capacity(10) == pytest.approx(np.log2(11))
    speeds = [mcs.efficiency for mcs in table()]
    assert speeds == sorted(speeds, reverse=True)
    assert all(0.2 <= mcs.rate <= 948 / 1024 for mcs in table())
    assert Mcs(6, 666 / 1024) in table()
    assert Mcs(6, (666 + 719) / 2048) in table()


@pytest.mark.parametrize("symbols", [101, 1620, 8101, 16200, 65536])
@pytest.mark.parametrize("mcs", table()[:: len(table()) // 8], ids=lambda mcs: mcs.name)
def test_blocks_use_the_symbols_and_no_more(symbols, mcs):
    framing = Framing(mcs, symbols)
    assert 0 <= symbols - framing.blocks * framing.block_symbols < framing.blocks
    limit = 8448 if mcs.rate > 1 / 3 else 3824
    assert framing.block_bits <= limit
    assert framing.blocks == 1 or symbols // (framing.blocks - 1) * mcs.efficiency > limit
    assert framing.block_bits / (framing.block_symbols * mcs.order) <= mcs.rate
    assert 8 * framing.payload_bytes <= framing.blocks * (framing.block_bits - CRC_BITS)
    assert 8 * framing.payload_bytes <= symbols * mcs.efficiency


def test_too_few_symbols_are_no_frame():
    with pytest.raises(ValueError, match="carry no byte"):
        Framing(Mcs(2, 0.5), 31)
    assert Framing(Mcs(2, 0.5), 32).payload_bytes == 1


@pytest.mark.parametrize(
    ("mcs", "symbols"),
    [
        (Mcs(2, 308 / 1024), 7001),
        (Mcs(2, 602 / 1024), 333),
        (Mcs(4, 0.5), 501),
        (Mcs(6, 0.65), 400),
        (Mcs(8, 948 / 1024), 2400),
    ],
    ids=str,
)
def test_bits_survive_a_good_channel(mcs, symbols):
    modem, rng = Modem(Framing(mcs, symbols)), np.random.default_rng(3)
    payload = rng.bytes(modem.framing.payload_bytes)
    assert modem.send(payload, 40, rng) == payload
    assert modem.send(payload[:5], 40, rng) == payload[:5] + bytes(len(payload) - 5)
    with pytest.raises(ValueError, match="a frame carries"):
        modem.send(payload + b"\0", 40, rng)


def test_nothing_survives_beyond_capacity_and_all_a_little_below():
    """So the noise has the power that was asked for, a factor of two would show."""
    modem, rng = Modem(Framing(Mcs(2, 0.5), 1000)), np.random.default_rng(4)
    assert capacity(-0.1) < 1 < capacity(2.2)
    assert modem.failures(16, 99, -0.1, rng) == (16, 16)
    assert modem.failures(16, 99, 2.2, rng) == (0, 16)
    assert modem.send(b"lost", -0.1, rng) is None


def test_counting_failures_stops_when_there_are_enough():
    modem = Modem(Framing(Mcs(4, 0.5), 300))
    assert modem.failures(64, 3, -10, np.random.default_rng(5)) == (16, 16)
    assert modem.failures(20, 999, -10, np.random.default_rng(5)) == (20, 20)


@pytest.mark.parametrize("codec", CODECS)
def test_packing_loses_nothing_and_saves_the_head(codec, picture):
    height, width = picture.shape[:2]
    for setting, chosen in enumerate(_settings(codec, SPEED)):
        for quality_ in (1, 40, 100):
            file = _file(codec, picture, quality_, chosen)
            payload = pack(file, codec, SPEED, setting, quality_, height, width)
            assert unpack(payload, codec, SPEED, height, width) == file
            assert unpack(payload + bytes(99), codec, SPEED, height, width) == file
            assert len(file) - len(payload) > {"jpeg": 150, "webp": 0, "avif": 200}[codec]


@pytest.mark.parametrize("codec", CODECS)
def test_the_largest_quality_that_fits(codec, picture):
    encodings = Encodings(picture, codec, SPEED)
    errors = []
    for limit in (500, 1000, 3000):
        payload, seen = encodings.fit(limit)
        setting, quality_ = payload[3], payload[4]
        assert len(payload) <= limit < len(encodings._payload(setting, quality_ + 1))
        own = open_file(_file(codec, picture, quality_, _settings(codec, SPEED)[setting]))
        assert (seen == own).all()
        errors.append(np.square(seen.astype(float) - picture).mean())
    assert errors == sorted(errors, reverse=True)
    assert encodings.fit(20) is None
    assert encodings.fit(10**6)[0][4] == 100


@pytest.mark.parametrize("codec", CODECS)
def test_a_picture_arrives_as_it_is_scored(codec, picture):
    modem, encodings = Modem(Framing(Mcs(4, 0.5), 4001)), Encodings(picture, codec, SPEED)
    payload, seen = encodings.fit(modem.framing.payload_bytes)
    arrived = modem.send(payload, 12, np.random.default_rng(6))
    assert len(arrived) == modem.framing.payload_bytes
    assert (encodings.open(arrived) == seen).all()


def test_the_link_for_an_snr_is_the_fastest_that_holds():
    mcs, found = rivals.choose(300, 3.0, 32, rivals.losses)
    assert found.blocks == Proportion(0, 32, 0.0, 0.0, found.blocks.high)
    assert found.frames[0] == 0 < found.frames[2]
    assert 0.5 < mcs.efficiency / capacity(3) < 1
    faster = [other for other in table() if mcs.efficiency < other.efficiency < capacity(3)]
    assert faster
    assert all(rivals.losses(other, 300, 3.0, 32, 1).blocks.hits for other in faster)


def test_losses_are_measured_where_theory_does_not_tell():
    mcs, tried = Mcs(2, 0.5), []

    def measure(*asked):
        tried.append(asked)
        return rivals.losses(*asked)

    own = rivals.losses(mcs, 300, 4.0, 32, 32)
    assert own.frames[0] == 0
    assert rivals.elsewhere(mcs, 300, own, 5.0, measure) == rivals.Losses(5.0, None, own.frames)
    assert rivals.elsewhere(mcs, 300, own, -0.1, measure) == rivals.Losses(-0.1, None, (1, 1, 1))
    assert not tried
    assert rivals.elsewhere(mcs, 300, own, 0.3, measure).blocks.hits > 0
    assert len(tried) == 1


def test_frames_are_lost_with_any_of_their_blocks():
    framing = Framing(Mcs(8, 948 / 1024), 2300)
    assert framing.blocks == 3
    at = rivals.losses(framing.mcs, framing.symbols, 24.6, 32, 32)
    assert 0 < at.blocks.hits < 32
    assert at.frames[0] == pytest.approx(1 - (1 - at.blocks.value) ** 3)
    assert at.frames[1] < at.frames[0] < at.frames[2]


def test_a_link_is_worth_its_pictures_and_its_losses():
    at = rivals.Losses(5.0, Proportion(1, 4, 0.25, 0.0, 0.8), (0.25, 0.0, 0.8))
    link = rivals.Rival(7.0, Mcs(2, 0.5), "", 1, 100, 0.5, [at])
    got, lost = (Scores(np.full(2, a), np.full(2, b), np.full(2, np.nan)) for a, b in ((30.0, 0.9), (10.0, 0.1)))
    (row,) = quality.digital_rows("set", "jpeg", [link], [got], lost)
    assert (row.psnr.value, row.ssim.value, row.ms_ssim) == (25, pytest.approx(0.7), None)
    assert (row.snr_db, row.design_db, row.lost) == (5.0, 7.0, at.frames)


def test_scores(images):
    same = score(images, images)
    assert (same.psnr == 100).all()
    assert same.ssim == pytest.approx(1)
    assert same.ms_ssim == pytest.approx(1)
    worse = score(images, np.clip(images + np.random.default_rng(0).normal(0, 0.1, images.shape), 0, 1).astype(np.float32))
    assert ((worse.ms_ssim > 0.3) & (worse.ms_ssim < 0.99)).all()
    assert np.isnan(score(images[:, :, :160], images[:, :, :160]).ms_ssim).all()


def test_a_bundle_is_measured_over_the_air(images):
    through = dict(quality.through_bundle("photos-10db", True, images, 16200, [0.0, 10.0, 90.0], "onnxruntime-cpu", "fp32"))
    clean = Receiver("photos-10db").receive(Transmitter("photos-10db").send(images))
    assert np.abs(through[90.0] - clean).max() < 1e-3
    levels = [psnr(images, answers).mean() for answers in through.values()]
    assert levels == sorted(levels)
    assert 25 < levels[1] < 35
    with pytest.raises(quality.click.ClickException, match="sends 16200 symbols, the others 8100"):
        next(quality.through_bundle("photos-10db", True, images, 8100, [0.0], "onnxruntime-cpu", "fp32"))


def test_the_linear_code_follows_the_channel_and_is_what_a_bundle_of_it_gives(images, tmp_path):
    images = images[:, :, 60:124, 60:124].copy()
    codec = quality.linear_codec("photos", 16, 64, 64)
    levels = [psnr(images, answers) for _, answers in quality.through_linear(codec, images, [0, 10, 20])]
    assert levels[0].mean() + 5 < levels[1].mean() < levels[2].mean() - 3
    ((_, more),) = quality.through_linear(quality.linear_codec("photos", 32, 64, 64), images, [20])
    assert psnr(images, more).mean() > levels[2].mean()
    export_model(codec, tmp_path / "linear", {"snr_db": [0, 20]}, precisions=["fp32"], signing_key=owner_key())
    for told, close in ((True, 0.02), (False, 0.3)):
        through = quality.through_bundle(str(tmp_path / "linear"), told, images, 2048, [0, 10, 20], "onnxruntime-cpu", "fp32")
        for level, (_, answers) in zip(levels, through, strict=True):
            assert psnr(images, answers) == pytest.approx(level, abs=close)
    # every weight is used at each of 16 x 16 places, but for those that take the SNR
    weights = [(name, weight.numel()) for name, weight in codec.encoder.named_parameters() if name.endswith("weight")]
    macs = sum(count * (1 if name.startswith("modulate") else 256) for name, count in weights)
    assert arithmetic(str(tmp_path / "linear"), 64, 64)["transmitter"]["macs"] == macs


def test_all_files_of_a_folder(tmp_path):
    for i in range(7):
        Image.new("RGB", (40, 40), (30 * i, 0, 0)).save(tmp_path / f"{i}.png")
    assert len(quality.pictures_of(f"folder:{tmp_path}", False, 99, 32, 32)) == 1
    everything = quality.pictures_of(f"folder:{tmp_path}", True, 99, 32, 32)
    assert np.rint(everything[:, 0, 0, 0] * 255).tolist() == [30 * i for i in range(7)]


def test_multiplications_are_counted():
    def weight(name, *shape):
        return helper.make_tensor(name, TensorProto.FLOAT, shape, np.zeros(shape).ravel())

    nodes = [
        helper.make_node("Conv", ["image", "a"], ["x"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["x", "b"], ["y"], group=4),
        helper.make_node("ConvTranspose", ["y", "c"], ["z"], strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["z"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("Gemm", ["flat", "d"], ["e"], transB=1),
        helper.make_node("MatMul", ["e", "f"], ["out"]),
    ]
    weights = [weight("a", 4, 3, 3, 3), weight("b", 8, 1, 1, 1), weight("c", 8, 5, 2, 2), weight("d", 7, 5), weight("f", 7, 2)]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, "height", "width"])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["batch", 2])
    graph = helper.make_graph(nodes, "", [image], [out], weights)
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]).SerializeToString()
    at = 8 * 6  # places after the stride
    macs = at * 4 * 27 + at * 8 + at * 8 * 5 * 4 + 5 * 7 + 7 * 2
    assert graph_cost(data, 16, 12) == {"macs": macs, "parameters": 108 + 8 + 160 + 35 + 14}


def test_both_sides_are_timed_in_every_form_that_is_there(images, monkeypatch):
    monkeypatch.setattr(cost, "ROUNDS", 2)
    monkeypatch.setattr(cost, "WARM_UP", 0)
    monkeypatch.setattr(cost, "FORMS", (("onnxruntime-cpu", "fp32"), ("onnxruntime-cpu", "int9")))
    timed = cost.latency(["photos-10db"], images[:1])["photos-10db"]
    assert sorted(timed["onnxruntime-cpu fp32"]) == ["receiver ms", "transmitter ms"]
    assert all(0 < ms < 60_000 for ms in timed["onnxruntime-cpu fp32"].values())
    assert timed["onnxruntime-cpu int9"]["value"] is None
    assert "int9" in timed["onnxruntime-cpu int9"]["reason"]


def test_the_program_compares_and_writes_what_it_found(monkeypatch, tmp_path):
    for name, few in (("CLIFF_BLOCKS", 16), ("CLIFF_DB", (-5.0,)), ("table", lambda: [Mcs(4, 0.5)])):
        monkeypatch.setattr(rivals, name, few)
    asked = ["--pictures", "2", "--height", "64", "--width", "64", "--snr", "10"]
    asked += ["--avif-speed", "10", "--sent", "1", "--blocks", "16"]
    done = CliRunner().invoke(quality.main, [*asked, "--out", str(tmp_path)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "quality-photos.png").stat().st_size > 5000
    table_ = (tmp_path / "quality.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in table_[4:8]] == ["| linear (photos)", "| jpeg", "| webp", "| avif"]
    found = json.loads((tmp_path / "quality.json").read_text())
    assert found["environment"]["packages"]["sionna-no-rt"][0].isdigit()
    assert found["symbols"] == 2048
    assert found["sets"]["photos"]["pictures"] == 2
    rows = {(row["contender"], row["design_db"], row["snr_db"]): row for row in found["rows"]}
    designs = {(codec, design, snr) for codec in CODECS for design, snr in ((10, 10), (10, 5))}
    assert set(rows) == designs | {("linear (photos)", None, 10)}
    for codec in CODECS:
        at, below = rows[codec, 10, 10], rows[codec, 10, 5]
        assert at["psnr"]["value"] > 20 > below["psnr"]["value"]
        assert (at["lost"][0], below["lost"][0]) == (0, 1)
        assert at["ms_ssim"] is None
        assert found["sets"]["photos"]["really sent"][codec]["sent"] == 1
