"""What tests of the core share."""

import pytest
from PIL import ImageFont

from ovis_core.training.fonts import FILES, Face


@pytest.fixture(scope="session")
def fonts(tmp_path_factory):
    """Pillow's own font for everything, so that no test depends on the system's; Chinese becomes boxes."""
    path = tmp_path_factory.mktemp("fonts") / "test.ttf"
    path.write_bytes(ImageFont.load_default(16).path.getvalue())
    return dict.fromkeys(FILES, (Face(path),))
