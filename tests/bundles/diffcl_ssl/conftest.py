"""What the tests of the bundle share."""

import pytest


@pytest.fixture(scope="session")
def bundle(tiny_bundle):
    return tiny_bundle("diffcl_ssl")
