"""A finished run."""

import pytest
from runs import small

from imgproc_attn.training import train


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    lines = []
    result = train(small(), folder, log=lines.append)
    return folder, result, lines
