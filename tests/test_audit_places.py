"""What an audit attacks: engines, channels and bundles side by side, on small real links."""

import dataclasses
import shutil

import numpy as np
import pytest
from semseal.runtime import channel
from semseal.runtime.audit import scene as scene_module
from semseal.runtime.audit.cell import file_name
from semseal.runtime.audit.links import deployed_engine, links, trained_channel
from semseal.runtime.audit.run import audit
from semseal.runtime.audit.scene import Scene
from semseal.runtime.audit.settings import Place
from semseal.runtime.audit.verdict import verdicts
from semseal.runtime.bundle import open_bundle, write_bundle
from semseal.runtime.defense.defenses import BY_NAME
from semseal.runtime.errors import AuditError, BundleError, EngineError, GraphError
from semseal.runtime.link import Receiver
from semseal.runtime.metrics import psnr
from semseal.runtime.pictures import open_pictures
from semseal.runtime.signing import owner_key
from test_audit import TINY

QUICKER = dataclasses.replace(TINY, eve_snrs=(10.0,), defenses=("none",), attacks=("no-key",))


def written(bundle, path, **manifest):
    """The bundle again with another manifest."""
    bundle = open_bundle(bundle)
    files = {name: (bundle.path / name).read_bytes() for name in bundle.manifest["files"]}
    return write_bundle(path, files, {**bundle.manifest, **manifest}, owner_key()).path


@pytest.fixture(scope="module")
def rayleigh(small_bundle, tmp_path_factory):
    return written(small_bundle, tmp_path_factory.mktemp("links") / "rayleigh", training={"channel": "rayleigh", "taps": 8})


def scene_of(bundle, **settings):
    photographs = open_pictures("photos", "valid"), open_pictures("photos", "test")
    return Scene(open_bundle(bundle), *(part.take(8, 32, 24) for part in photographs), dataclasses.replace(TINY, **settings))


def test_two_engines_and_two_precisions_stand_side_by_side(small_bundle, tmp_path):
    engines, precisions = ("onnxruntime-cpu", "openvino"), ("fp32", "int8")
    asked = dataclasses.replace(QUICKER, engines=engines, precisions=precisions, attacks=("no-key", "white-box"))
    results = audit([small_bundle], "photos", tmp_path / "out", asked)
    assert [(place.engine, place.precision) for place in results.every_place] == [(e, p) for e in engines for p in precisions]
    measured = {(row.engine, row.precision): row for row in results.rows if row.attack == "no-key"}
    assert len(measured) == 4
    assert {row.main_channel for row in results.rows} == {row.eve_channel for row in results.rows if row.eve_snr} == {"awgn"}
    agreement = results.surrogate_agreement_db
    assert set(agreement) == {f"{small_bundle.name}, {engine} {precision}" for engine in engines for precision in precisions}
    assert all(found > 40 for name, found in agreement.items() if "fp32" in name)
    assert all(found > 20 for found in agreement.values())
    for name in ("report.html", "tables.md"):
        text = (tmp_path / "out" / name).read_text()
        for engine in engines:
            for precision in precisions:
                assert f"{small_bundle.name}, Eve 10 dB AWGN, main 10 dB AWGN, {engine} {precision}" in text


def test_the_engine_that_was_asked_for_runs_alice_bob_and_eves_decoder(small_bundle, monkeypatch):
    opened = []
    real = scene_module.open_engine
    monkeypatch.setattr(
        scene_module, "open_engine", lambda name, *rest, **more: (opened.append(name), real(name, *rest, **more))[1]
    )
    scene = scene_of(small_bundle, engines=("openvino",), precisions=("int8",))
    assert opened == ["openvino"]
    assert "engine='openvino', precision='int8'" in repr(scene._transmitter(BY_NAME["none"], None))
    here, there = (scene_of(small_bundle, engines=(name,)).decode(np.ones((2, 8, 24), np.float32), np.ones(2), 10.0)
                   for name in ("onnxruntime-cpu", "openvino"))  # fmt: skip
    assert 0 < np.abs(here - there).max() < 1e-4  # two libraries, one graph


def test_more_engines_can_be_asked_for_later(small_bundle, tmp_path):
    audit([small_bundle], "photos", tmp_path / "out", QUICKER)
    results = audit([small_bundle], "photos", tmp_path / "out", dataclasses.replace(QUICKER, engines=("openvino",)))
    assert results.bundles[0].engines == ("onnxruntime-cpu", "openvino")
    assert {row.engine for row in results.rows if row.attack == "no-key"} == {"onnxruntime-cpu", "openvino"}


def test_a_surrogate_that_is_not_what_the_engine_sends_is_skipped_by_name(small_bundle, tmp_path):
    """A bundle whose int8 transmitter is another network than the one that is differentiated."""
    scene = scene_of(small_bundle)
    assert scene.surrogate_agreement_db() > 40
    honest = scene.surrogate
    scene.__dict__["surrogate"] = lambda images, index: honest(images, index).roll(1, dims=1)
    with pytest.raises(GraphError, match=r"only -?\d+\.\d dB from what onnxruntime-cpu fp32 sends"):
        scene.surrogate_agreement_db()


# the engine and the channel that are deployed


def test_the_default_is_what_the_manifest_says(small_bundle, rayleigh, tmp_path):
    plain = open_bundle(small_bundle)
    assert (deployed_engine(plain), trained_channel(plain)) == ("onnxruntime-cpu", "awgn")
    assert trained_channel(open_bundle(rayleigh)) == "rayleigh"
    built = open_bundle(written(small_bundle, tmp_path / "built", engines=["tensorrt", "openvino"]))
    assert deployed_engine(built) == "tensorrt"
    (link,) = links([built], dataclasses.replace(TINY, engines=("openvino",)))
    assert link.engines == ("openvino",)
    assert trained_channel(open_bundle(written(small_bundle, tmp_path / "packed", training=None))) == "awgn"


def test_a_default_engine_that_cannot_be_had_is_an_error_that_names_the_other(small_bundle, tmp_path):
    built = written(small_bundle, tmp_path / "built", engines=["tensorrt"])
    with pytest.raises((BundleError, EngineError), match="tensorrt"):
        audit([built], "photos", tmp_path / "out", QUICKER)
    assert not (tmp_path / "out").exists()


def test_a_channel_of_another_version_is_refused(small_bundle, tmp_path):
    odd = written(small_bundle, tmp_path / "odd", training={"channel": "rician"})
    with pytest.raises(BundleError, match="channel 'rician'"):
        audit([odd], "photos", tmp_path / "out", QUICKER)


def test_a_rayleigh_link_is_audited_under_rayleigh(rayleigh, tmp_path):
    results = audit([rayleigh], "photos", tmp_path / "out", QUICKER)
    assert {(row.main_channel, row.eve_channel) for row in results.rows if row.eve_snr} == {("rayleigh", "rayleigh")}
    assert "Rayleigh" in (tmp_path / "out" / "report.html").read_text()
    bob = next(row for row in results.rows if row.attack == "bob")
    assert (bob.eve_channel, bob.paper_psnr) == (None, None)  # the paper's figure is of AWGN
    with pytest.raises(AuditError, match="holds another audit: the channels differ"):
        audit([rayleigh], "photos", tmp_path / "out", dataclasses.replace(QUICKER, channels=("awgn",)))
    mixed = dataclasses.replace(QUICKER, channels=("awgn",), eve_channel="multipath")
    other = audit([rayleigh], "photos", tmp_path / "other", mixed)
    assert {(row.main_channel, row.eve_channel) for row in other.rows if row.eve_snr} == {("awgn", "multipath")}
    awgn = next(row for row in other.rows if row.attack == "bob")
    assert awgn.psnr != bob.psnr


def test_each_channel_fades_as_its_name_says(small_bundle, rayleigh):
    symbols = np.ones((64, 96), np.complex64)
    fading, still = scene_of(rayleigh), scene_of(small_bundle)
    for eve in (True, False):
        faded, plain = (scene.add_noise(symbols, 30.0, 1, eve).mean(axis=1).real for scene in (fading, still))
        assert np.abs(plain - 1).max() < 0.02
        assert faded.min() < 0.97  # a deep fade, after the equaliser


@pytest.mark.parametrize("kind", ["rayleigh", "multipath"])
def test_the_edge_network_is_told_the_noise_that_the_equaliser_leaves(edge_bundle, kind):
    scene = scene_of(edge_bundle, channels=(kind,))
    sent = np.stack([frame.symbols for frame in scene.send(scene.images, BY_NAME["none"])])
    received = scene.add_noise(sent, 10.0, 4)
    rng = np.random.default_rng([TINY.seed, 4])
    channel.draw_noise(*sent.shape, rng)
    drawn = channel.draw_taps(len(sent), 1 if kind == "rayleigh" else 8, rng)
    gain = channel.equalised_gain(drawn, sent.shape[1], 10.0)
    rows = np.ascontiguousarray(received).view(np.float32).reshape(len(sent), *scene.row_shape)
    measured, left = scene._noise(rows, 10.0), (np.abs(received - sent) ** 2).mean(axis=1)
    assert measured == pytest.approx(left, rel=0.6 if kind == "rayleigh" else 1.0)  # of 96 symbols, which resemble each other
    assert left == pytest.approx((1 - gain) / gain, rel=0.6)
    told = psnr(scene.images, scene.decode(rows, scene.scales, 10.0)).mean()
    scene.__dict__["_noise"] = lambda rows, snr_db: np.full(len(rows), 10 ** (-snr_db / 10))  # the noise before it
    assert told > psnr(scene.images, scene.decode(rows, scene.scales, 10.0)).mean() or kind == "multipath"
    frames = [
        dataclasses.replace(frame, symbols=row)
        for frame, row in zip(scene.send(scene.images, BY_NAME["none"]), received, strict=True)
    ]
    bob = Receiver(edge_bundle, scene.key).receive(frames)
    assert psnr(scene.images, bob).mean() == pytest.approx(told, abs=0.2)  # he measures it as she does


def test_bob_gets_a_grey_picture_for_a_frame_that_his_receiver_refuses(rayleigh):
    """Under mix a frame in a deep fade does not look like the model's, and is refused; the others keep their pictures."""
    scene = scene_of(rayleigh)
    scene.main_snr = -20.0
    answers, _ = scene.bob(BY_NAME["mix"])
    assert answers.shape == scene.images.shape
    assert np.isfinite(answers).all()
    scene.main_snr = 30.0
    assert (psnr(scene.images, scene.bob(BY_NAME["mix"])[0]) > psnr(scene.images, answers) - 1).all()


# bundles side by side


def test_two_bundles_of_one_snr_and_one_name_stand_side_by_side(small_bundle, edge_bundle, tmp_path):
    one = shutil.copytree(small_bundle, tmp_path / "ours" / "link")
    two = shutil.copytree(edge_bundle, tmp_path / "theirs" / "link")
    results = audit([one, two], "photos", tmp_path / "out", dataclasses.replace(QUICKER, attacks=("no-key", "black-box")))
    names = {"ours/link", "theirs/link"}
    assert {bundle.name for bundle in results.bundles} == names
    assert {bundle.main_snr for bundle in results.bundles} == {10.0}
    assert {row.bundle for row in results.rows if row.attack == "no-key"} == names
    for file in ("report.html", "tables.md"):
        text = (tmp_path / "out" / file).read_text()
        assert all(name in text for name in names)
        assert f"{min(names)}, main channel 10 dB" in text  # a column of Table I
    assert "side by side" in (tmp_path / "out" / "tables.md").read_text().lower()
    assert verdicts(results)[0].missing  # what was not asked for is not there for either


def test_names_are_as_short_as_they_can_be(small_bundle, tmp_path):
    def named(*paths):
        return sorted(link.name for link in links([open_bundle(path) for path in paths], TINY))

    copies = [shutil.copytree(small_bundle, tmp_path / where) for where in ("a/x/link", "b/x/link", "b/other", "c/photos-10db")]
    assert named(copies[0]) == ["link"]
    assert named(*copies[:3]) == ["a/x/link", "b/x/link", "other"]
    assert named(copies[3], "photos-10db") == ["c/photos-10db", "photos-10db (packaged)"]
    with pytest.raises(AuditError, match="is given twice"):
        named(copies[0], copies[0].parent / ".." / "x" / "link")


def test_every_cell_has_a_file_of_its_own():
    places = [
        Place(bundle, 10.0, engine, precision, main, eve)
        for bundle in ("a/b", "a_b", "link")
        for engine in ("openvino", "onnxruntime-cpu")
        for precision in ("fp32", "int8")
        for main in ("awgn", "rayleigh")
        for eve in ("awgn", "rayleigh")
    ]
    files = {file_name(place.cell("no-key", "none", 10.0)) for place in places}
    assert len(files) == len(places)
    assert not any("/" in name for name in files)
