"""Pictures in a terminal: two pixels in a character by its half block, or shades where there are no colours."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image
    from rich.text import Text

_SHADES = " .:-=+*#%@"


def thumbnail(path: Path, columns: int, rows: int, colours: bool) -> "list[Text]":
    """A picture in lines of text, made smaller to fit, by a whole number.

    Args:
        path: of the picture.
        columns: characters across, at most.
        rows: lines, at most.
        colours: half blocks in true colour, which a terminal of fewer colours gets in those; or shades.

    Returns:
        Lines; none if the picture cannot be read.
    """
    from PIL import Image, UnidentifiedImageError
    from rich.color import Color
    from rich.style import Style
    from rich.text import Text

    try:
        with Image.open(path) as opened:
            small = _reduced(opened.convert("RGB"), columns, rows)
    except (OSError, UnidentifiedImageError, ValueError):
        return []
    lines = []
    for top in range(0, small.height, 2):
        line = Text()
        for x in range(small.width):
            upper = _pixel(small, x, top)
            lower = _pixel(small, x, top + 1) if top + 1 < small.height else upper
            if colours:
                style = Style(color=Color.from_rgb(*upper), bgcolor=Color.from_rgb(*lower))
                line.append("▀", style)
            else:
                grey = sum((*upper, *lower)) / (6 * 255)
                line.append(_SHADES[min(len(_SHADES) - 1, int(grey * len(_SHADES)))])
        lines.append(line)
    return lines


def _reduced(picture: "Image.Image", columns: int, rows: int) -> "Image.Image":
    factor = max(1, -(-picture.width // columns), -(-picture.height // (2 * rows)))
    return picture.reduce(factor)


def _pixel(picture: "Image.Image", x: int, y: int) -> tuple[int, int, int]:
    pixel = picture.getpixel((x, y))
    assert isinstance(pixel, tuple)
    return int(pixel[0]), int(pixel[1]), int(pixel[2])
