"""Draws docs/styles.jpg: a sample of each lettering style, with Pillow and fonts of the system, no model.

python3 tests/bench/style_sheet.py (with Pillow, numpy and torch)
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from ovis_core.drawing.fonts import Fonts  # noqa: E402
from ovis_core.drawing.setting import Type, Typesetter  # noqa: E402
from ovis_core.drawing.sheet import Look, draw_sheet  # noqa: E402
from ovis_core.lettering.styles import SHIPPED, load_styles  # noqa: E402

SIZE = (220, 110)
ACROSS, DOWN = np.meshgrid(np.arange(SIZE[0]), np.arange(SIZE[1]))
FONTS = Fonts()
RGB = tuple[int, int, int]


@dataclass
class Sample:
    """A picture being drawn: colours (height, width, 3) and the letters' coverage (height, width), 0 to 1."""

    picture: np.ndarray
    letters: np.ndarray
    rng: np.random.Generator

    def blend(self, colour, alpha: np.ndarray) -> None:
        alpha = np.clip(alpha, 0, 1)[..., None]
        self.picture = self.picture * (1 - alpha) + np.asarray(colour, float) * alpha

    def noise(self, blur: float) -> np.ndarray:
        """Makes noise of mean 0 and deviation 1, in patches of `blur` pixels."""
        smooth = blurred(self.rng.random(self.letters.shape), blur)
        return (smooth - smooth.mean()) / smooth.std()


Effect = Callable[[Sample], None]


def blurred(values: np.ndarray, radius: float) -> np.ndarray:
    low, span = values.min(), max(np.ptp(values), 1e-6)
    image = Image.fromarray(((values - low) / span * 255).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(radius)), float) / 255 * span + low


def shifted(values: np.ndarray, dx: int, dy: int) -> np.ndarray:
    return np.roll(values, (dy, dx), (0, 1))


def fill(colour: RGB) -> Effect:
    return lambda s: s.blend(colour, s.letters)


def glow(colour: RGB, radius: float = 7) -> Effect:
    return lambda s: s.blend(colour, blurred(s.letters, radius) * 1.4)


def shadow(dx: int, dy: int, radius: float = 2, colour: RGB = (0, 0, 0), strength: float = 0.6) -> Effect:
    return lambda s: s.blend(colour, blurred(shifted(s.letters, dx, dy), radius) * strength)


def outline(colour: RGB, width: int = 2) -> Effect:
    def draw(s: Sample) -> None:
        image = Image.fromarray((s.letters * 255).astype(np.uint8)).filter(
            ImageFilter.MaxFilter(2 * width + 1)
        )
        s.blend(colour, np.asarray(image, float) / 255)

    return draw


def rough(strength: float, blur: float = 1.2) -> Effect:
    """Frays the edges."""

    def draw(s: Sample) -> None:
        s.letters = np.clip((blurred(s.letters, 1.2) + s.noise(blur) * strength - 0.5) * 6 + 0.5, 0, 1)

    return draw


def worn(strength: float, blur: float = 0.7) -> Effect:
    """Takes ink away in patches."""

    def draw(s: Sample) -> None:
        s.letters = s.letters * np.clip(1 - strength * np.clip(s.noise(blur), 0, 2), 0, 1)

    return draw


def streaks(strength: float) -> Effect:
    def draw(s: Sample) -> None:
        lines = np.repeat(s.rng.random((SIZE[1], 1)), SIZE[0], 1) + 0.25 * s.rng.random(s.letters.shape)
        s.letters = s.letters * (lines > strength)

    return draw


def ramp(*colours: RGB) -> Effect:
    """Fills the letters from top to bottom."""

    def draw(s: Sample) -> None:
        rows = np.where(s.letters.max(1) > 0.5)[0]
        place = np.clip((DOWN - rows[0]) / max(np.ptp(rows), 1), 0, 1) * (len(colours) - 1)
        table = np.array(colours, float)
        low = np.minimum(place.astype(int), len(colours) - 2)
        part = (place - low)[..., None]
        s.blend(table[low] * (1 - part) + table[low + 1] * part, s.letters)

    return draw


def bevel(strength: float, radius: float = 1.5, sunk: bool = False) -> Effect:
    """Lights the upper left edges and shades the lower right ones, or the other way round."""

    def draw(s: Sample) -> None:
        soft = blurred(s.letters, radius)
        slope = (shifted(soft, 1, 1) - shifted(soft, -1, -1)) * (-1 if sunk else 1) * strength
        s.picture = s.picture - (slope * s.letters)[..., None] * 255

    return draw


def cells(size: int, dots: bool) -> Effect:
    """Makes letters of round dots or square pixels."""

    def draw(s: Sample) -> None:
        small = Image.fromarray((s.letters * 255).astype(np.uint8)).resize(
            (SIZE[0] // size, SIZE[1] // size), Image.Resampling.BOX
        )
        grid = np.asarray(small.resize((SIZE[0], SIZE[1]), Image.Resampling.NEAREST)) > 110
        x, y = ACROSS * (SIZE[0] // size) / SIZE[0] % 1 - 0.5, DOWN * (SIZE[1] // size) / SIZE[1] % 1 - 0.5
        s.letters = grid * (np.hypot(x, y) < 0.38 if dots else np.ones_like(x)).astype(float)

    return draw


def stripes(colour: RGB, period: int, width: int, slant: float = 0.0, inside: bool = True) -> Effect:
    def draw(s: Sample) -> None:
        lines = (ACROSS + slant * DOWN) % period < width
        s.blend(colour, lines * (s.letters if inside else np.ones_like(s.letters)))

    return draw


def bridges(period: int, width: int) -> Effect:
    def draw(s: Sample) -> None:
        s.letters = s.letters * (ACROSS % period >= width)

    return draw


def grain(strength: float, blur: float = 0.6) -> Effect:
    def draw(s: Sample) -> None:
        s.picture = s.picture + (s.noise(blur) * strength)[..., None]

    return draw


def split(s: Sample) -> None:
    """Draws panels with a slot across their middle."""
    s.picture[(ACROSS % 44 < 2)] = 70
    s.picture[SIZE[1] // 2 - 1 : SIZE[1] // 2 + 1] = 0


def stain(colour: RGB) -> Effect:
    def draw(s: Sample) -> None:
        soft = blurred(s.letters, 1.5)
        s.blend(colour, soft * (0.55 + 0.2 * s.noise(6)) + np.clip(soft * (1 - soft) * 1.4, 0, 0.4))

    return draw


@dataclass(frozen=True)
class Drawn:
    ground: RGB
    effects: Sequence[Effect]
    font: str = "bold"
    text: str = "Ovis 字"
    tracking: float = 0.0


INK, PAPER = (30, 28, 30), (244, 240, 230)
STYLES = {
    "neon": Drawn(
        (24, 14, 40), [glow((255, 40, 160), 8), glow((255, 90, 190), 3), fill((255, 235, 250))], "sans"
    ),
    "letterpress": Drawn(PAPER, [worn(0.25), fill((60, 70, 90)), bevel(1.2, sunk=True), grain(3)], "serif"),
    "brush": Drawn(PAPER, [rough(0.12, 2), streaks(0.16), fill(INK)]),
    "running script": Drawn(PAPER, [rough(0.1, 2), fill(INK)], "serif", "行书"),
    "clerical script": Drawn(PAPER, [rough(0.06), fill(INK)], "serif", "隶书"),
    "seal script": Drawn(PAPER, [outline((190, 30, 30), 9), worn(0.3), fill((250, 240, 230))], "serif", "篆"),
    "regular script": Drawn(PAPER, [fill(INK)], "serif", "楷书"),
    "songti": Drawn((255, 255, 255), [fill((10, 10, 10))], "serif", "宋体字"),
    "heavy sans": Drawn(
        (235, 200, 60), [outline((20, 20, 20), 1), fill((20, 20, 20))], "bold", "OVIS", -0.04
    ),
    "thin sans": Drawn((225, 228, 232), [fill((60, 64, 72))], "sans", "O V I S", 0.2),
    "high-contrast serif": Drawn((250, 250, 250), [fill((0, 0, 0))], "serif", "Ovis"),
    "slab serif": Drawn((232, 222, 200), [outline((40, 34, 30), 1), worn(0.2), fill((40, 34, 30))], "serif"),
    "chalk": Drawn((44, 62, 54), [worn(0.5, 0.6), rough(0.12, 0.7), fill((236, 236, 228))], "sans"),
    "enamel sign": Drawn(
        (20, 60, 130), [rough(0.08, 3), fill((248, 248, 244)), bevel(0.8), glow((255, 255, 255), 14)]
    ),
    "woodcut": Drawn((222, 196, 150), [rough(0.22, 1.5), streaks(0.08), fill((40, 26, 18))]),
    "embroidery": Drawn(
        (120, 40, 50), [fill((230, 190, 90)), stripes((180, 135, 50), 3, 1, 0.6), bevel(1.5), grain(4)]
    ),
    "LED matrix": Drawn(
        (8, 8, 8), [cells(5, True), glow((255, 60, 20), 2), fill((255, 120, 40))], "bold", "OVIS"
    ),
    "split-flap": Drawn((26, 26, 28), [fill((245, 245, 240)), split], "mono", "OVIS 24"),
    "typewriter": Drawn(PAPER, [worn(0.35, 0.8), rough(0.08), fill((40, 40, 50))], "mono", "Ovis 12"),
    "stencil": Drawn(
        (190, 180, 160), [bridges(23, 3), glow((60, 60, 50), 2), fill((40, 42, 36)), grain(5)], "bold", "OVIS"
    ),
    "graffiti": Drawn(
        (150, 140, 130),
        [shadow(4, 4, 1), outline((20, 20, 30), 4), ramp((255, 80, 160), (90, 60, 255)), grain(8, 1)],
    ),
    "gold foil": Drawn(
        (28, 26, 40), [ramp((255, 236, 160), (190, 130, 40), (255, 226, 140)), bevel(0.6)], "serif"
    ),
    "carved stone": Drawn(
        (160, 158, 152), [grain(9, 0.8), fill((132, 130, 124)), bevel(3.0, 2, sunk=True)], "serif"
    ),
    "carved wood": Drawn(
        (70, 42, 24), [grain(7, 1.5), ramp((236, 196, 96), (176, 126, 40)), bevel(1.6, sunk=True)]
    ),
    "marquee bulbs": Drawn(
        (60, 16, 20),
        [outline((150, 30, 30), 3), cells(7, True), glow((255, 200, 90), 4), fill((255, 244, 200))],
        "bold",
        "OVIS",
    ),
    "chrome": Drawn(
        (20, 16, 60),
        [
            outline((230, 230, 255), 1),
            ramp((90, 160, 255), (240, 250, 255), (60, 40, 30), (230, 200, 160)),
            bevel(0.6),
        ],
    ),
    "balloon": Drawn((250, 224, 230), [shadow(3, 5, 4), fill((224, 70, 130)), bevel(3.0, 4)]),
    "paper cut": Drawn((236, 226, 210), [shadow(5, 6, 4), fill((230, 120, 80)), shadow(0, 0, 0, strength=0)]),
    "watercolour": Drawn((250, 249, 245), [rough(0.12, 3), stain((50, 110, 180)), grain(2, 1)]),
    "handwriting": Drawn((255, 255, 252), [rough(0.05, 2), fill((24, 24, 30))], "sans", "Ovis 手写"),
    "copperplate": Drawn(PAPER, [fill((40, 30, 60))], "serif", "Ovis"),
    "blackletter": Drawn((238, 226, 196), [rough(0.1), fill((30, 20, 16))], "serif", "Ovis"),
    "pixel": Drawn((16, 20, 56), [cells(5, False), fill((90, 255, 120))], "bold", "OVIS"),
    "3D clay": Drawn((220, 226, 232), [shadow(4, 6, 4), rough(0.04, 4), fill((232, 130, 60)), bevel(3.0, 4)]),
    "ice": Drawn(
        (40, 70, 110), [glow((190, 230, 255), 4), fill((170, 215, 240)), bevel(2.2, 2), grain(5, 0.8)]
    ),
    "comic": Drawn((255, 226, 70), [shadow(4, 4, 0, strength=1), outline((0, 0, 0), 3), fill((240, 50, 50))]),
}
# Of these no font is common enough to be drawn with: what tells them apart is not shown.
PLAIN = (
    "running script",
    "clerical script",
    "seal script",
    "regular script",
    "copperplate",
    "blackletter",
    "handwriting",
)


def draw(name: str, drawn: Drawn) -> Image.Image:
    setter = Typesetter(FONTS, Type(FONTS.named(drawn.font), tracking=drawn.tracking))
    box = SIZE[0] - 40, SIZE[1] - 40
    set_text = setter.draw(setter.lay(drawn.text, *box), *box)
    canvas = Image.new("L", SIZE)
    canvas.paste(set_text.letters, (20 - set_text.pad, 20 - set_text.pad))
    picture = np.zeros((*SIZE[::-1], 3)) + drawn.ground
    sample = Sample(picture, np.asarray(canvas, float) / 255, np.random.default_rng(len(name)))
    for effect in drawn.effects:
        effect(sample)
    return Image.fromarray(sample.picture.clip(0, 255).astype(np.uint8))


def main() -> None:
    names = list(load_styles(SHIPPED))
    if missing := set(names) ^ set(STYLES):
        raise SystemExit(f"styles without a sample, or samples without a style: {sorted(missing)}")
    pictures = [draw(name, STYLES[name]) for name in names]
    labels = [name + " *" * (name in PLAIN) for name in names]
    sheet = draw_sheet(pictures, labels, columns=6, look=Look(cell_size=0, font_size=15), fonts=FONTS)
    sheet.save(ROOT / "docs" / "styles.jpg", quality=82, optimize=True)


if __name__ == "__main__":
    main()
