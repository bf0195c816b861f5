"""The load trace: what it refuses, and its proportions."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from traces.load import LoadTrace, TraceSource, proportions

SOURCE = TraceSource("nano", "topk", 0, 8, 2, "abc", "0.1.0")


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize(
    ("step", "tokens", "reason"),
    [
        (np.arange(2), np.ones((3, 2, 4), int), r"got \(2,\) and \(3, 2, 4\)"),
        (np.arange(3), np.ones((3, 4), int), r"got \(3,\) and \(3, 4\)"),
        (np.arange(3), np.ones((3, 2, 4)), "tokens must hold integers, got float64"),
        (np.arange(3.0), np.ones((3, 2, 4), int), "step must hold integers, got float64"),
        (np.arange(3), -np.ones((3, 2, 4), int), "got -1"),
        (np.array([0, 2, 2]), np.ones((3, 2, 4), int), "after step 2"),
    ],
)
def test_what_is_no_trace_is_refused(step, tokens, reason):
    with pytest.raises(ValueError, match=reason):
        LoadTrace(step, tokens, SOURCE)


@given(hnp.arrays(np.int64, (3, 2, 5), elements=st.integers(0, 10**6)))
def test_proportions_sum_to_one_and_rows_without_tokens_are_uniform(tokens):
    tokens[0, 0] = 0
    share = proportions(tokens)
    np.testing.assert_allclose(share.sum(-1), 1.0)
    np.testing.assert_array_equal(share[0, 0], 0.2)
    counted = tokens.sum(-1) > 0
    np.testing.assert_allclose(share[counted] * tokens.sum(-1)[counted][:, None], tokens[counted], atol=1e-6)


def test_the_fingerprint_changes_with_every_field():
    others = {
        TraceSource(**{**SOURCE.__dict__, name: value * 2 + type(value)(1)}).fingerprint()
        for name, value in SOURCE.__dict__.items()
    }
    assert len(others | {SOURCE.fingerprint()}) == 8


def test_importing_needs_no_torch():
    readers = "traces.store, traces.routing, traces.foreign, traces.synthetic.workload"
    others = "placement.lpt, placement.balance, placement.export, predictors.states"
    code = f"import sys, {readers}, {others}; sys.exit('torch' in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
