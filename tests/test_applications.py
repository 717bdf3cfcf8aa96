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


def test_gradient_of_mobile_net():
    model = applications.build("MobileNetV2", alpha=0.35)
    applications.randomize(model, applications.two_frames(model))
    frames = applications.far_from_kinks(model)
    applications.check_gradient(model, frames)


def test_gradient_of_squeeze_and_excite():
    model = applications.build("EfficientNetB0")
    frames = applications.two_frames(model)
    applications.randomize(model, frames)
    applications.check_gradient(model, frames)
