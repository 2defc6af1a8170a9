"""The measuring core, with clocks and machines that are made up so that nothing depends on how fast this one is."""

import json
from itertools import count

import numpy as np
import onnx
import pytest
from semseal.runtime.bench import compare as comparing
from semseal.runtime.bench import machine
from semseal.runtime.bench.floor import SIDE, Ceilings, operations, product_graph
from semseal.runtime.bench.measure import Ratio, Stage, interleave, paired, summarize, verdict
from semseal.runtime.bench.progress import Progress
from semseal.runtime.bench.rate import measure_rates, open_loop
from semseal.runtime.bench.results import Where
from semseal.runtime.engine import open_engine
from semseal.runtime.errors import BenchError

WHERE = Where("edge", "onnxruntime-cpu", "fp32", "mix", 1)


class Machine:
    """A clock that work moves on, on a machine whose speed drifts, with noise and rare interruptions."""

    def __init__(self, seed: int, noise: float = 0.03, reading: float = 0.0) -> None:
        self.now, self._rng, self._noise, self._reading = 0.0, np.random.default_rng(seed), noise, reading

    def clock(self) -> float:
        self.now += self._reading  # reading a clock takes time, by which who waits for it gets on
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def work(self, seconds: float) -> None:
        drift = 1 + 0.3 * np.sin(self.now / 3)
        interruption = 0.02 if self._rng.random() < 0.01 else 0.0
        self.now += seconds * drift * np.exp(self._noise * self._rng.standard_normal()) + interruption


# percentiles


@pytest.mark.parametrize(("n", "p90", "p99"), [(1, False, False), (63, False, False), (64, True, False), (661, True, False),
                                               (662, True, True)])  # fmt: skip
def test_a_percentile_that_the_samples_cannot_carry_is_none_with_the_reason(n, p90, p99):
    found = summarize(np.arange(n, 0, -1) / 1e3)
    assert found.n == n
    assert found.max_ms == pytest.approx(n)
    assert (found.p90_ms is not None, found.p99_ms is not None, found.jitter_ms is not None) == (p90, p99, p99)
    assert ("p90_ms" in found.reasons, "p99_ms" in found.reasons, "jitter_ms" in found.reasons) == (not p90, not p99, not p99)
    assert found.p50_ms == pytest.approx((n + 1) // 2)  # a time that was measured, not one between two
    if p99:
        assert (found.p90_ms, found.p99_ms) == pytest.approx((596, 656))
        assert found.jitter_ms == pytest.approx(656 - 331)


def test_every_round_runs_each_stage_once_in_a_new_order_and_only_the_run_counts():
    here, order = Machine(0, noise=0), []

    def stage(name, seconds):
        def run(given):
            order.append((name, given))
            here.now += seconds

        def prepare():
            here.now += 100
            return (name.upper(),)

        return Stage(name, run, prepare=prepare)

    made = {name: stage(name, seconds) for name, seconds in (("a", 1.0), ("b", 2.0), ("c", 4.0))}
    told = []
    taken = interleave(made, 20, warm_up=3, clock=here.clock, tell=told.append)
    assert {name: set(seconds.tolist()) for name, seconds in taken.items()} == {"a": {1.0}, "b": {2.0}, "c": {4.0}}
    rounds = [tuple(name for name, _ in order[start : start + 3]) for start in range(0, len(order), 3)]
    assert len(rounds) == 23
    assert all(sorted(names) == ["a", "b", "c"] for names in rounds)
    assert len(set(rounds)) == 6
    assert {given for _, given in order} == {"A", "B", "C"}
    assert (len(told), told[-1]) == (23, 1.0)


# ratios and verdicts


def test_the_interval_of_a_paired_ratio_holds_the_truth_as_often_as_it_says():
    held = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        base = np.exp(rng.standard_normal(100)) * (1 + np.arange(100))
        ratio = paired(base, base * 1.2 * np.exp(0.3 * rng.standard_normal(100)))
        held += ratio.low <= 1.2 <= ratio.high
    assert 185 <= held <= 199
    with pytest.raises(ValueError, match="at least 7 pairs"):
        paired(np.ones(6), np.ones(6))


def ratio(value, half=0.005):
    return Ratio(value, value - half, value + half, 100)


@pytest.mark.parametrize(("blocks", "noise", "expected"), [
    ((ratio(1.1), ratio(1.1)), 0.01, "slower"),
    ((ratio(0.9), ratio(0.9)), 0.01, "faster"),
    ((ratio(1.0), ratio(1.02)), 0.01, "no difference"),
    ((ratio(1.1), ratio(1.0)), 0.01, "undecided"),  # not seen again
    ((ratio(1.1, 0.06), ratio(1.1)), 0.01, "undecided"),  # an interval that holds 5 %
    ((ratio(1.0, 0.06), ratio(1.0)), 0.01, "undecided"),
    ((ratio(1.1), ratio(1.1)), 0.12, "undecided"),  # within what the machine is from itself
        ((ratio(1.0), ratio(1.0)), 0.12, "undecided"),
        ((ratio(1.2), ratio(1.2)), 0.12, "slower"),
    ((ratio(1.1), ratio(1.1)), 0.1, "undecided"),
])  # fmt: skip
def test_a_verdict_wants_both_blocks_beyond_the_margin_and_beyond_the_noise(blocks, noise, expected):
    assert verdict(blocks, noise) == expected


def compared(seed, slowdown):
    """Two copies of a link on a made-up machine; ``slowdown`` is of one stage of the other's."""
    here = Machine(seed)

    def working(name, seconds):
        return Stage(name, lambda: here.work(seconds))

    def side(factor):
        return {"send": working("send", 2e-3 * factor), "link": working("link", 5e-3)}

    blocks = []
    for block in range(comparing.BLOCKS):
        sides = {"base": side(1.0), "again": side(1.0), "other": side(slowdown)}
        blocks.append(comparing.measure_block(sides, 30.0, 0.05, block, clock=here.clock))
    return {row.stage: row.verdict for row in comparing.judged(blocks, 0.05)}


def test_two_copies_do_not_differ_twenty_times_of_twenty():
    found = [compared(seed, 1.0) for seed in range(20)]
    assert found == [{"send": "no difference", "link": "no difference"}] * 20


def test_a_stage_that_is_a_tenth_slower_is_found_twenty_times_of_twenty_and_no_other():
    found = [compared(seed, 1.1) for seed in range(20)]
    assert found == [{"send": "slower", "link": "no difference"}] * 20


def test_a_stage_that_is_a_tenth_faster_is_found_too():
    assert compared(0, 1 / 1.1) == {"send": "faster", "link": "no difference"}


def test_what_cannot_be_a_baseline_is_refused_with_the_reason(tmp_path):
    file = tmp_path / "results.json"
    file.write_text("{}")
    with pytest.raises(BenchError, match="no results file of semseal bench"):
        comparing.baseline(str(file))
    file.write_text(json.dumps({"bundles": {"edge": {"path": "edge", "digest": "00"}}}))
    with pytest.raises(BenchError, match="its digest is another"):
        comparing.baseline(str(file))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").touch()
    assert comparing.baseline(str(tmp_path)).python == str(tmp_path / "bin" / "python")
    assert comparing.baseline("edge").bundle == "edge"


# requests at a fixed rate


def test_a_stall_that_a_closed_loop_would_hide_shows_in_the_99th_percentile():
    here, served = Machine(0, noise=0, reading=1e-5), count(1)

    def serve():
        here.now += 0.5 if next(served) == 200 else 0.001  # one stall of half a second, at 100 requests a second

    found = open_loop(serve, 100.0, 1000, 0.033, here.clock, here.sleep)
    assert found.requests == 1000
    assert found.service_p99_ms == pytest.approx(1, rel=0.05)  # what a closed loop says: one slow sample of a thousand
    assert found.p50_ms == pytest.approx(1, rel=0.05)
    assert found.p99_ms > 400  # those that waited behind it: about 0.5 s / 9 ms
    assert 45 <= found.late <= 56
    assert found.max_ms == pytest.approx(500, rel=0.05)
    assert not found.stopped


def test_a_rate_that_cannot_be_kept_is_given_up_and_what_waits_counts_as_late():
    here = Machine(0, noise=0, reading=1e-5)
    found = open_loop(lambda: here.sleep(0.02), 100.0, 2000, 0.01, here.clock, here.sleep)
    assert found.stopped
    assert found.late >= found.requests - 2
    assert found.max_ms > 200
    assert here.now < 1.0


def test_few_requests_have_no_99th_percentile():
    here = Machine(0, noise=0, reading=1e-5)
    found = open_loop(lambda: here.sleep(0.001), 10.0, 100, 0.01, here.clock, here.sleep)
    assert found.p99_ms is None
    assert found.p90_ms == pytest.approx(1, rel=0.05)


def test_rates_that_are_asked_for_are_those_measured():
    found = measure_rates(WHERE, "send", lambda: None, 1e-5, 1000.0, rates_hz=(2000.0, 4000.0))
    assert [row.rate_hz for row in found.curve] == [2000.0, 4000.0]
    assert found.highest_hz == 4000.0


# floors


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_the_matrix_product_of_a_ceiling_is_right(precision):
    x = np.random.default_rng(0).random((SIDE, SIDE), np.float32)
    given = open_engine("onnxruntime-cpu", product_graph(precision), 1)(x)
    assert np.ptp(given, axis=1).max() < 1e-3  # all columns are the mean of the row
    assert np.abs(given[:, 0] - x.mean(axis=1)).max() < {"fp32": 1e-4, "fp16": 1e-2, "int8": 2e-2}[precision]


def test_operations_are_two_for_each_multiply_add():
    weights = onnx.numpy_helper.from_array(np.zeros((8, 3, 5, 5), np.float32), "w")
    picture = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 3, 10, 12])
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 8, 10, 12])
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], pads=[2, 2, 2, 2])
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [picture], [out], [weights]))
    assert operations(model.SerializeToString()) == 2 * 8 * 10 * 12 * 3 * 25


def test_a_floor_is_what_takes_longest_and_the_calls():
    limits = Ceilings(((100, 1e3), (1000, 1e2)), {"a": {"fp32": 1e6}, "b": {"fp32": 2e6}}, {"a": 0.5}, {})
    assert limits.floor_s(Stage("s", int, bytes=50, calls=1), "a", "fp32") == pytest.approx(0.05 + 0.5)
    assert limits.floor_s(Stage("s", int, bytes=500), "a", "fp32") == pytest.approx(5.0)
    assert limits.floor_s(Stage("s", int, bytes=50, operations=10**6), "a", "fp32") == pytest.approx(0.5)  # the faster engine's
    assert limits.floor_s(Stage("s", int), "a", "fp32") is None


# energy and progress


def test_energy_is_null_with_the_reason_where_no_counter_can_be_trusted(tmp_path):
    found = machine.energy(WHERE, lambda: None, 6.0, tmp_path)
    assert found.joules_per_image is None
    assert "no RAPL" in found.reason
    zone = tmp_path / "sys/class/powercap/intel-rapl:0"
    zone.mkdir(parents=True)
    (zone / "energy_uj").write_text("secret")
    assert "wants root" in machine.energy(WHERE, lambda: None, 6.0, tmp_path).reason
    assert "wants 5 s" in machine.energy(WHERE, lambda: None, 1.0, tmp_path).reason


def test_the_rail_of_a_board_is_volts_times_amperes(tmp_path):
    for name, text in (
        ("in1_label", "VDD_IN"),
        ("in1_input", "5000"),
        ("curr1_input", "2000"),
        ("in2_label", "VDD_CPU_GPU_CV"),
    ):
        (tmp_path / name).write_text(text)
    rails = machine.Rails(tmp_path)
    assert rails.watts() == 10.0


def test_progress_counts_the_seconds_that_are_expected():
    progress = Progress({"a": 30.0, "b": 60.0}, quiet=True)
    with progress, progress.step("a"):
        progress.tell(0.1)
        assert progress.line().startswith("  3 %  a, about 1:27 left")
    with progress.step("b"):
        assert progress.line().startswith(" 33 %  b, about 0:")


def test_the_record_says_why_it_does_not_know(tmp_path):
    found = machine.record(tmp_path)
    assert found["governor"]["value"] is None
    assert "cannot be read" in found["governor"]["reason"]
    merged = machine.meanwhile(found, machine.record(tmp_path))
    assert 0 <= merged["steal_share"] <= 1
    assert json.dumps(merged)
