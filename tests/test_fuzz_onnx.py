"""A short run of ``fuzz_onnx``, always the same."""

import pytest
from fuzz_onnx import files_of, run
from semseal.runtime.errors import GraphError
from semseal.runtime.onnxfile import check_onnx


def test_no_file_is_answered_with_a_traceback():
    cases = [f"{kind}:{number}" for number in range(16) for kind in ("mutated", "generated")]
    outcomes = list(run(cases))
    assert [outcome.case for outcome in outcomes] == cases
    assert not [outcome for outcome in outcomes if outcome.is_finding]
    kinds = {outcome.kind for outcome in outcomes}
    assert {"packed", "refused"} <= kinds  # else the files would be too wild, or not wild enough


@pytest.mark.parametrize("kind", ["mutated", "generated"])
def test_a_case_is_the_same_each_time(kind):
    assert files_of(f"{kind}:7") == files_of(f"{kind}:7")
    assert files_of(f"{kind}:7") != files_of(f"{kind}:8")


def test_the_walk_through_the_bytes_raises_nothing_else():
    refused = 0
    for number in range(100):
        for data in files_of(f"mutated:{number}"):
            try:
                check_onnx(data)
            except GraphError:
                refused += 1
    assert refused > 3
