"""Runner on the models of keras.applications: the smallest of each family.

`python tests/applications.py` checks all of them.
"""

import applications
import pytest

pytestmark = pytest.mark.timeout(120)


def test_all_models_are_known():
    assert sorted(applications.KNOWN) == applications.names()


@pytest.mark.parametrize(
    "name",
    [name for name in applications.KNOWN if name not in applications.LARGER],
)
def test_step(name):
    applications.check(name)


@pytest.mark.parametrize(
    "name, arguments",
    [("MobileNetV2", {"alpha": 0.35}), ("EfficientNetB0", {})],
)
def test_gradient(name, arguments):
    model = applications.build(name, **arguments)
    frames = applications.two_frames(model)
    applications.randomize(model, frames)
    applications.check_gradient(model, frames)
