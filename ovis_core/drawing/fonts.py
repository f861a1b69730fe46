"""Finds fonts of the system, by the characters that they have, or by language and style.

No font is part of this repository. Where the system has none, Pillow's own still writes Latin letters.
"""

import itertools
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import ImageFont

FOLDERS = (
    *("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts"),
    *("/System/Library/Fonts", "/Library/Fonts", "~/Library/Fonts"),
    *("C:/Windows/Fonts", "~/AppData/Local/Microsoft/Windows/Fonts"),
)
COLLECTIONS = (".ttc", ".otc")
ENDINGS = (".ttf", ".otf", *COLLECTIONS)
# Plain faces that read well small, the best first; others come after them.
PREFERRED = (
    *("notosanscjk", "notosanssc", "sourcehansans", "msyh", "pingfang", "hiragino", "wqy", "simhei"),
    *("notosans-", "dejavusans", "segoeui", "arial", "helvetica", "liberationsans", "freesans", "unifont"),
)
LOUD = (
    *("bold", "italic", "oblique", "black", "thin", "light"),
    *("mono", "condensed", "narrow", "serif", "medium"),
)
# Kinds of faces that a designer asks for -> how their files are named, on any system, the best first.
KINDS = {
    "sans": (
        *("arial.", "segoeui.", "helvetica.", "notosans-regular", "liberationsans-regular", "dejavusans."),
        *("notosanscjk-regular", "notosanssc-regular", "sourcehansans", "msyh.", "pingfang", "wqy-microhei"),
    ),
    "bold": (
        *("arialbd.", "arial-bold.", "arialbold.", "segoeuib.", "notosans-bold.", "liberationsans-bold."),
        *("dejavusans-bold.", "notosanscjk-bold", "notosanssc-bold", "msyhbd.", "stheitimedium", "simhei."),
    ),
    "serif": (
        *("times.", "timesnewroman.", "georgia.", "notoserif-regular", "liberationserif-regular"),
        *("dejavuserif.", "notoserifcjk-regular", "notoserifsc", "simsun", "songti", "notoserifcjk-bold"),
    ),
    "mono": (
        *("consola.", "menlo.", "couriernew.", "notosansmono-regular", "liberationmono-regular"),
        *("dejavusansmono.", "notosanscjk-regular", "msyh.", "pingfang"),
    ),
}
MAX_FACES = 20  # of one collection
MISSING = "\U0010ffff"  # a code without a character: every font draws its sign for what it lacks
PROBE = 24  # pixels

STYLES = {"sans": "sans-serif", "bold": "bold sans-serif", "serif": "serif", "mono": "monospace"}
SCRIPTS = {"en": "Latin", "zh": "Chinese"}
# (language, style) -> the Debian package, file name and number in the file of each font that will do. Regular
# Noto Serif is left out: its horizontal strokes vanish in small pictures.
SIMPLIFIED = 2  # the number of the simplified Chinese forms in Noto's collections
FILES: dict[tuple[str, str], tuple[tuple[str, str, int], ...]] = {
    ("en", "sans"): (
        ("fonts-dejavu-core", "DejaVuSans.ttf", 0),
        ("fonts-liberation", "LiberationSans-Regular.ttf", 0),
    ),
    ("en", "bold"): (
        ("fonts-dejavu-core", "DejaVuSans-Bold.ttf", 0),
        ("fonts-liberation", "LiberationSans-Bold.ttf", 0),
    ),
    ("en", "serif"): (
        ("fonts-dejavu-core", "DejaVuSerif.ttf", 0),
        ("fonts-liberation", "LiberationSerif-Bold.ttf", 0),
    ),
    ("en", "mono"): (
        ("fonts-liberation", "LiberationMono-Bold.ttf", 0),
        ("fonts-dejavu-core", "DejaVuSansMono.ttf", 0),
    ),
    ("zh", "sans"): (
        ("fonts-noto-cjk", "NotoSansCJK-Regular.ttc", SIMPLIFIED),
        ("fonts-wqy-microhei", "wqy-microhei.ttc", 0),
    ),
    ("zh", "bold"): (("fonts-noto-cjk", "NotoSansCJK-Bold.ttc", SIMPLIFIED),),
    ("zh", "serif"): (("fonts-noto-cjk", "NotoSerifCJK-Bold.ttc", SIMPLIFIED),),
}


@dataclass(frozen=True)
class Face:
    """One font of a file, or Pillow's own."""

    path: Path | None = None  # None: Pillow's own, which has Latin letters
    number: int = 0  # in a collection

    def at(self, size: int, is_shaped: bool = False) -> ImageFont.FreeTypeFont:
        """Loads the font at `size` pixels an em.

        is_shaped: joins letters as their script asks for, where Pillow was built with Raqm. Without it, a
        text is one character after the other, and the same on every machine.
        """
        layout = None if is_shaped else ImageFont.Layout.BASIC
        if self.path:
            return ImageFont.truetype(str(self.path), size, self.number, layout_engine=layout)
        font = ImageFont.load_default(size)
        if not isinstance(font, ImageFont.FreeTypeFont):
            raise ValueError("Pillow was built without FreeType; install the Pillow of PyPI")
        return font


BUILT_IN = Face()
StyledFaces = Mapping[tuple[str, str], tuple[Face, ...]]  # (language, style) -> the faces to choose from


class Fonts:
    """Finds the fonts of some folders, and opens them when they are needed."""

    def __init__(self, folders: Iterable[str | Path] = FOLDERS) -> None:
        self.folders = [Path(folder).expanduser() for folder in folders]
        self.opened: list[Face] = []
        self.left = self._faces()
        self.probes: dict[Face, ImageFont.FreeTypeFont] = {}
        self.drawn: dict[tuple[Face, str], bool] = {}

    def of_style(self, wanted: Iterable[tuple[str, str]] = FILES) -> StyledFaces:
        """Finds the faces that are installed for each (language, style).

        Raises ValueError when one has none, naming the Debian packages that have it.
        """
        installed: dict[str, Path] = {}
        for folder in reversed(self.folders):  # so that the first folder wins
            installed |= {path.name: path for path in sorted(_font_files(folder))}
        faces = {
            key: tuple(Face(installed[name], number) for _, name, number in FILES[key] if name in installed)
            for key in sorted(wanted)
        }
        missing = [key for key, found in faces.items() if not found]
        if missing:
            kinds = ", ".join(f"{SCRIPTS[language]} {STYLES[style]}" for language, style in missing)
            searched = [folder for folder in self.folders if folder.is_dir()] or self.folders
            packages = " ".join(sorted({FILES[key][0][0] for key in missing}))
            raise ValueError(
                f"no font was found for {kinds} in {', '.join(map(str, searched))}; install one, on Debian "
                f"and Ubuntu: apt-get install {packages}"
            )
        return faces

    def names(self) -> list[str]:
        """Lists the names of the font files, in alphabetical order."""
        return sorted(
            {path.name for folder in self.folders for path in _font_files(folder)}, key=str.casefold
        )

    def named(self, name: str) -> tuple[Face, ...]:
        """Finds the faces of a kind, the best first, or those of a file, by its name.

        A kind may have none: others take its place. Raises ValueError for a file that is missing or no font.
        """
        files = [path for folder in self.folders for path in sorted(_font_files(folder))]
        if name in KINDS:
            first: dict[str, Path] = {}
            for path in reversed(files):
                first[_plain_name(path)] = path
            found = [first[n] for start in KINDS[name] for n in sorted(first) if n.startswith(start)]
        else:
            found = [path for path in files if path.name == name][:1]
        faces = tuple(face for path in found for face in self._faces_of(path)[:1])
        if not faces and name not in KINDS:
            raise ValueError(
                f"there is no font {name!r} that can be opened; choose one of {', '.join(KINDS)}, or put the "
                "file into ComfyUI's models/fonts folder and press R to refresh"
            )
        return faces

    def runs(self, text: str, first: Sequence[Face] = ()) -> list[tuple[str, Face]]:
        """Cuts the text into pieces of one font each: a single piece where one font has it all.

        first: faces to take before all others, as far as they have the characters. Raises ValueError naming
        the characters that no font has.
        """
        needed = sorted({character for character in text if is_drawn(character)})
        for face in first or self._all():
            if all(self.has(face, character) for character in needed):
                return [(text, face)]
        chosen = {
            character: face for character in needed if (face := self._first(character, first)) is not None
        }
        missing = [character for character in needed if character not in chosen]
        if missing:
            names = ", ".join(f"{c} ({unicodedata.name(c, f'U+{ord(c):04X}')})" for c in missing[:5])
            raise ValueError(
                f"no font of this system has {names}; install one, as Google's Noto fonts, or put a .ttf or "
                ".otf file into ComfyUI's models/fonts folder"
            )
        runs: list[tuple[str, Face]] = []
        for character in text:
            face = chosen.get(character) or (runs[-1][1] if runs else next(iter(chosen.values())))
            if runs and runs[-1][1] == face:
                runs[-1] = (runs[-1][0] + character, face)
            else:
                runs.append((character, face))
        return runs

    def replace_missing(self, text: str) -> str:
        """Puts a question mark for each character that no font has."""
        return "".join(c if not is_drawn(c) or self._first(c) else "?" for c in text)

    def has(self, face: Face, character: str) -> bool:
        """Tells whether the font draws a character, and not its sign for what it lacks."""
        key = face, character
        if key not in self.drawn:
            self.drawn[key] = self._glyph(face, character) not in (self._glyph(face, MISSING), None)
        return self.drawn[key]

    def _glyph(self, face: Face, character: str) -> tuple[tuple[int, int], bytes] | None:
        """Draws a character, None for nothing at all."""
        if face not in self.probes:
            self.probes[face] = face.at(PROBE)
        mask: Any = self.probes[face].getmask(character)  # a sequence, which Pillow's types do not say
        return (mask.size, bytes(mask)) if 0 not in mask.size else None

    def _first(self, character: str, first: Sequence[Face] = ()) -> Face | None:
        faces = itertools.chain(first, self._all())
        return next((face for face in faces if self.has(face, character)), None)

    def _all(self) -> Iterator[Face]:
        yield from list(self.opened)
        for face in self.left:
            self.opened.append(face)
            yield face

    def _faces(self) -> Iterator[Face]:
        for folder in self.folders:
            for path in sorted(_font_files(folder), key=_rank):
                yield from self._faces_of(path)
        yield BUILT_IN

    def _faces_of(self, path: Path) -> list[Face]:
        """Opens the fonts of a file, simplified Chinese first; none of a broken one or of fixed sizes."""
        faces = []
        for number in range(MAX_FACES if path.suffix.lower() in COLLECTIONS else 1):
            face = Face(path, number)
            try:
                self.probes[face] = face.at(PROBE)
            except OSError:
                break
            faces.append(face)
        names = {face: self.probes[face].getname()[0] or "" for face in faces}
        return sorted(faces, key=lambda face: not names[face].endswith(" SC"))


def is_drawn(character: str) -> bool:
    """Tells whether a character needs a glyph: spaces, controls, joiners and variation selectors do not."""
    return not (
        character.isspace()
        or unicodedata.category(character) in ("Cc", "Cf")
        or "\ufe00" <= character <= "\ufe0f"
    )


def _font_files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS)


def _plain_name(path: Path) -> str:
    return path.name.lower().replace(" ", "").replace("_", "-")


def _rank(path: Path) -> tuple[int, int, str]:
    """Sorts plain faces first, the preferred ones among them first."""
    name = _plain_name(path)
    preferred = next((i for i, start in enumerate(PREFERRED) if name.startswith(start)), len(PREFERRED))
    return sum(word in name for word in LOUD), preferred, str(path)
