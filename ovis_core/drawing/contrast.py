"""Measures how well colours are told apart."""

RGB = tuple[int, int, int]


def luminance(rgb: RGB) -> float:
    """Computes the relative luminance of an sRGB colour, 0 to 1 (WCAG 2.2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in rgb)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: RGB, b: RGB) -> float:
    """Computes the contrast ratio, 1 to 21 (WCAG 2.2); 3 is its bound for large text."""
    dark, light = sorted((luminance(a), luminance(b)))
    return (light + 0.05) / (dark + 0.05)
