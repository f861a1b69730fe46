"""Fonts of the system, found by file name; none is part of this repository."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import ImageFont

FOLDERS = (
    Path("/usr/share/fonts"),
    Path("/usr/local/share/fonts"),
    Path("~/.local/share/fonts"),
    Path("~/.fonts"),
)
STYLES = {"sans": "sans-serif", "bold": "bold sans-serif", "serif": "serif", "mono": "monospace"}
CHINESE_STYLES = {"sans": "无衬线体", "bold": "粗无衬线体", "serif": "衬线体", "mono": "等宽体"}
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
    """One font of a file."""

    path: Path
    number: int = 0  # in a collection

    def at(self, size: int) -> ImageFont.FreeTypeFont:
        """The font at `size` pixels an em."""
        return _load(self.path, self.number, size)


Fonts = Mapping[tuple[str, str], tuple[Face, ...]]  # (language, style) -> the faces to choose from


@lru_cache(maxsize=1024)
def _load(path: Path, number: int, size: int) -> ImageFont.FreeTypeFont:
    # The basic layout: pictures must not depend on whether Pillow was built with Raqm.
    return ImageFont.truetype(str(path), size, number, layout_engine=ImageFont.Layout.BASIC)


def find_fonts(wanted: Iterable[tuple[str, str]] = FILES, folders: Iterable[Path] = FOLDERS) -> Fonts:
    """The faces that are installed, for each wanted (language, style).

    Raises ValueError when one has none, naming the Debian packages that have it.
    """
    folders = [folder.expanduser() for folder in folders]
    installed: dict[str, Path] = {}
    for folder in reversed(folders):  # so that the first folder wins
        installed |= {path.name: path for path in sorted(folder.rglob("*.tt[fc]"))}
    fonts = {
        key: tuple(Face(installed[name], number) for _, name, number in FILES[key] if name in installed)
        for key in sorted(wanted)
    }
    missing = [key for key, faces in fonts.items() if not faces]
    if missing:
        kinds = ", ".join(f"{SCRIPTS[language]} {STYLES[style]}" for language, style in missing)
        packages = " ".join(sorted({FILES[key][0][0] for key in missing}))
        raise ValueError(
            f"no font was found for {kinds} in {', '.join(map(str, folders))}; install one, on Debian and "
            f"Ubuntu: apt-get install {packages}"
        )
    return fonts
