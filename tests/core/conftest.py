"""What tests of the core share."""

import pytest
from PIL import ImageFont

from ovis_core.drawing.fonts import FILES, Face
from ovis_core.typography.rendering import Renderer
from ovis_core.typography.settings import Typography


@pytest.fixture(scope="session")
def fonts(tmp_path_factory):
    """Pillow's own font for everything, so that no test depends on the system's; Chinese becomes boxes."""
    path = tmp_path_factory.mktemp("fonts") / "test.ttf"
    path.write_bytes(ImageFont.load_default(16).path.getvalue())
    return dict.fromkeys(FILES, (Face(path),))


@pytest.fixture(scope="session")
def everything():
    """A distribution with all that can be drawn."""
    return Typography(
        sizes=((128, 128), (192, 96), (96, 192)),
        backgrounds={"plain": 1, "frame": 1, "stripe": 1, "two-tone": 1},
        positions=dict.fromkeys(
            [
                "centre",
                "top",
                "bottom",
                "left",
                "right",
                "top left",
                "top right",
                "bottom left",
                "bottom right",
            ],
            1,
        ),
        tilted=0.3,
        num_colours=12,
    )


@pytest.fixture(scope="session")
def draw(fonts):
    def draw(count, held_out=False, seed=0, **settings):
        renderer = Renderer(Typography(**settings), fonts, held_out)
        return [renderer(seed, index) for index in range(count)]

    return draw


@pytest.fixture(scope="session")
def various(fonts, everything):
    renderer = Renderer(everything, fonts)
    return [renderer(3, index) for index in range(400)]
