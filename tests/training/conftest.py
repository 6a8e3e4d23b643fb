"""What several tests of training take."""

import pytest


@pytest.fixture(params=[False, True], ids=["at once", "background"])
def background(request):
    return request.param
