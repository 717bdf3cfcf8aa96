"""What only parts of this package need, and `pip install` leaves out."""

import contextlib


@contextlib.contextmanager
def extra(name):
    """The context in which to import packages of an extra.

    Within another one, the extra of the outer one is named: whoever imports
    more needs more.

    Args:
        name: That of the extra, as in pyproject.toml.

    Raises:
        ModuleNotFoundError: If one of them is not installed. The message says
            how to install the extra.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"The package {error.name} is not installed: "
            f"pip install 'reuse-tf[{name}]'",
            name=error.name,
        ) from error
