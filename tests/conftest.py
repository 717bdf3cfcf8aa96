"""What all tests share: deterministic generated cases and random weights."""

import os

import hypothesis
import keras
import pytest

# Programs are silent by themselves, unless they are told how much to say.
os.environ.pop("TF_CPP_MIN_LOG_LEVEL", None)

hypothesis.settings.register_profile(
    "deterministic",
    database=None,
    deadline=None,
    derandomize=True,
    # Fewer where all is tested once more: see test_instruction_sets.py.
    max_examples=int(os.environ.get("REUSE_TF_EXAMPLES", "40")),
    suppress_health_check=[
        hypothesis.HealthCheck.too_slow,
        hypothesis.HealthCheck.data_too_large,
    ],
)
hypothesis.settings.load_profile("deterministic")


@pytest.fixture(autouse=True)
def _random_seed():
    keras.utils.set_random_seed(1)
