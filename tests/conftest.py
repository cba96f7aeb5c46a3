import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest
import torch

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real images kept beside the project; tests that need them skip where they are absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the real images are not at {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


class _Helpers(importlib.abc.MetaPathFinder):
    """Modules that tests share, by their bare names: no folder of tests is on the path.

    The last of the finders, so that a helper can shadow nothing.
    """

    files = (
        "toy",
        "pdfs",
        "models/detr/detector_checks",
        "models/detr/painted",
        "models/detr/panoptic_checks",
        "tools/defects",
    )

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        for file in self.files:
            if file.rpartition("/")[2] == fullname:
                return importlib.util.spec_from_file_location(
                    fullname, Path(__file__).parent / f"{file}.py"
                )
        return None


sys.meta_path.append(_Helpers())
