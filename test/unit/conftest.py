"""What several files of unit tests are given."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def model_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint directory whose statistics the tests replace; see `released_statistics`."""
    from small_checkpoints import make_checkpoint  # loads torch, which most of them do without

    return make_checkpoint(tmp_path_factory.mktemp("contract"))
