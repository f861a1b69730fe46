"""Sets texts into a picture, and covers what they replace."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image, ImageFilter

from .contrast import RGB
from .fonts import Fonts
from .ground import BLACK, area, ground_behind, ink_of, readable
from .placing import Place, Point, project
from .setting import HAN, Coverage, Laid, Type, Typesetter

COVER_MARGIN = 0.25  # of a covered box's shorter side: a reader's boxes cut soft edges and outlines off
MIN_COVER_MARGIN = 2.0  # pixels
SOFT_EDGE = 0.5  # of the margin, over which a cover fades

Corners = tuple[Point, ...]


@dataclass(frozen=True)
class Spot:
    """A text and where it goes.

    colour: of this text alone. reach: pixels to the left and right of the place's middle, along its lines, as
    far as they may grow for as long as the letters stay smaller than the place is high; none is the place's
    own width. ink: boxes whose lettering's colour is the text's, if that is to be the picture's; none is the
    place itself.
    """

    text: str
    place: Place
    colour: RGB | None = None
    reach: tuple[float, float] | None = None
    ink: tuple[Corners, ...] = ()


@dataclass(frozen=True)
class Look:
    """How type looks. Lengths in ems.

    ink: None is the colour of the picture's lettering, black or white where it has none.
    """

    kind: Type = field(default_factory=Type)
    ink: RGB | None = (255, 255, 255)
    outline: RGB = (0, 0, 0)
    shadow: RGB = (0, 0, 0)
    shadow_distance: float = 0.0  # to the right and down
    shadow_blur: float = 0.0


@dataclass(frozen=True)
class Layer:
    """What is laid over a picture: colours, premultiplied, 0 to 1, and how much of each pixel they take."""

    colours: np.ndarray  # float32 (height, width, 3)
    alpha: np.ndarray  # float32 (height, width)

    @classmethod
    def empty(cls, height: int, width: int) -> "Layer":
        return cls(np.zeros((height, width, 3), np.float32), np.zeros((height, width), np.float32))

    def over(self, colour: np.ndarray, alpha: np.ndarray) -> "Layer":
        """Lays a colour, (3,) or (height, width, 3), over this one."""
        kept = 1 - alpha[..., None]
        return Layer(self.colours * kept + colour * alpha[..., None], self.alpha * kept[..., 0] + alpha)


def typeset(
    picture: np.ndarray,
    spots: Sequence[Spot],
    look: Look,
    fonts: Fonts,
    covered: Sequence[Corners] = (),
    others: Sequence[Corners] = (),
) -> Layer:
    """Sets each text at its spot, over the ground that is put where `covered` boxes are.

    With any covered, the places of texts that may reach beyond theirs are, too.

    picture: uint8 (height, width, 3). others: boxes of lettering that stays, which is not taken for ground.
    Raises ValueError for text that does not fit or that no font can write.
    """
    height, width = picture.shape[:2]
    layer = Layer.empty(height, width)
    if not spots and not covered:
        return layer
    size = (width, height)
    setters = {way: Typesetter(fonts, replace(look.kind, is_vertical=way)) for way in (False, True)}
    fitted = []
    for spot in spots:
        setter = setters[_is_vertical(spot, look.kind)]
        fitted.append((setter, *_fitted(spot, setter)))
    places = [spot.place.corners for _, spot, _ in fitted]
    if covered:  # and scraps around it, which a reader did not take for letters
        widened = [spot.place.corners for _, spot, _ in fitted if spot.reach]
        covered = [*covered, *widened]
    hidden = area([*map(grown, covered), *others, *(() if covered else places)], size)
    ground = ground_behind(picture, hidden)
    if covered:
        layer = layer.over(ground / 255, _cover(covered, size) * ~area(others, size))
    for setter, spot, laid in fitted:
        wanted = spot.colour or look.ink
        if wanted is None:
            where = area([spot.place.corners], size)
            found = ink_of(picture, ground, area(spot.ink, size) if spot.ink else where)
            wanted = readable(found, ground, where)
        box = max(1, round(spot.place.width)), max(1, round(spot.place.height))
        layer = _inked(layer, setter.draw(laid, *box), spot.place, laid.size, replace(look, ink=wanted))
    return layer


def grown(corners: Corners) -> Corners:
    """Grows a box by the margin that a cover has."""
    points = np.array(corners, float)
    across, down = points[1] - points[0], points[3] - points[0]
    width, height = np.linalg.norm(across) or 1.0, np.linalg.norm(down) or 1.0
    margin = max(MIN_COVER_MARGIN, COVER_MARGIN * min(width, height))
    u, v = across / width * margin, down / height * margin
    moved = points + np.array([-u - v, u - v, u + v, v - u])
    return tuple((float(x), float(y)) for x, y in moved)


def _cover(covered: Sequence[Corners], size: tuple[int, int]) -> np.ndarray:
    """Marks what is covered, 1 on the boxes and fading out in their margins."""
    mask = np.zeros(size[::-1], np.float32)
    for corners in covered:
        whole = area([grown(corners)], size)
        side = min(math.dist(corners[i], corners[0]) for i in (1, 3))
        blur = SOFT_EDGE * max(MIN_COVER_MARGIN, COVER_MARGIN * side) / 2
        soft = Image.fromarray(whole.astype(np.uint8) * 255).filter(ImageFilter.GaussianBlur(blur))
        box = area([corners], size)
        mask = np.maximum(mask, np.where(box, 1.0, np.where(whole, np.asarray(soft) / 255, 0.0)))
    return mask.astype(np.float32)


def _is_vertical(spot: Spot, kind: Type) -> bool:
    if kind.is_vertical is not None:
        return kind.is_vertical
    return spot.place.height > 2 * spot.place.width and bool(HAN.search(spot.text)) and len(spot.text) > 1


def _fitted(spot: Spot, setter: Typesetter) -> tuple[Spot, Laid]:
    """Lays a spot's text, and widens its place within its reach where the text needs it."""
    place = spot.place
    height = max(1, round(place.height))
    if spot.reach is None or setter.kind.is_vertical:
        return spot, setter.lay(spot.text, max(1, round(place.width)), height)
    left, right = spot.reach
    laid = setter.lay(spot.text, max(1, round(left + right)), height)
    width = min(max(place.width, float(laid.width)), left + right)
    shift = min(max(0.0, width / 2 - left), right - width / 2)
    angle = np.deg2rad(place.angle)
    moved = replace(
        place,
        x=place.x + shift * float(np.cos(angle)),
        y=place.y - shift * float(np.sin(angle)),
        width=width,
    )
    return replace(spot, place=moved), laid


def _inked(layer: Layer, drawn: Coverage, place: Place, em: int, look: Look) -> Layer:
    """Lays shadow, outline and letters over a layer."""
    size = layer.alpha.shape[1], layer.alpha.shape[0]
    outline = project(drawn.outline, drawn.pad, place, size)
    if look.shadow_distance or look.shadow_blur:
        shift = round(look.shadow_distance * em)
        shadow = Image.new("L", size)
        shadow.paste(Image.fromarray((outline * 255).round().astype(np.uint8)), (shift, shift))
        shadow = shadow.filter(ImageFilter.GaussianBlur(look.shadow_blur * em))
        layer = layer.over(_unit(look.shadow), np.asarray(shadow, np.float32) / 255)
    if look.kind.outline:
        layer = layer.over(_unit(look.outline), outline)
    return layer.over(_unit(look.ink or BLACK), project(drawn.letters, drawn.pad, place, size))


def _unit(colour: RGB) -> np.ndarray:
    return np.array(colour, np.float32) / 255
