"""Fixtures of the trace tests."""

import jaxtyping
import pytest


@pytest.fixture
def as_users_call(monkeypatch):
    """Without the tests' shape checks, which would speak before the errors that a user sees."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
