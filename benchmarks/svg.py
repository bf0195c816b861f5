"""Colours that follow a page's light or dark mode, and matplotlib's SVG made fit to stand inside a page.

Matplotlib draws with fixed colours; `embed` hands them over to CSS variables, which `palette_css` defines.
"""

import html
import re
from functools import cache

from matplotlib import colormaps
from matplotlib.colors import to_hex

# Okabe and Ito's hues, told apart by colour-blind readers; darkened or lightened for either ground
METHOD_COLOURS = {
    "light": ("#0072b2", "#c2570c", "#00815f", "#b5508c", "#b07d00", "#2f97cf", "#5b5f97", "#7a6a5b"),
    "dark": ("#4aa8e0", "#f0843f", "#2cc79c", "#e59ac6", "#e8b93c", "#9ad7fb", "#a9acdf", "#c9b8a6"),
}
# ordered series (layers, ranks): the stretch of viridis that keeps its contrast on either ground
NUM_ORDERED = 12
ORDERED_RANGE = {"light": (0.0, 0.78), "dark": (0.36, 1.0)}
# stand-ins for the page's own text colours
INK, FAINT = "#010203", "#040506"
LONG_PATH = 400  # characters
# corner by corner, two sides level
RECTANGLE = re.compile(r"M (\S+) (\S+) (\S+) \2 \3 (\S+) \1 \4 (?:\1 \2 )?z")


def method_colour(index: int) -> str:
    """CSS variable of an unordered series."""
    return f"--method-{index % len(METHOD_COLOURS['light'])}"


def method_dash(index: int) -> str:
    """Solid until the colours run out."""
    return "-" if index < len(METHOD_COLOURS["light"]) else "-."


def ordered_colour(rank: int, count: int) -> str:
    """CSS variable of the series at `rank` of `count` in an order, e.g. a layer's."""
    return f"--ordered-{round(rank * (NUM_ORDERED - 1) / max(count - 1, 1))}"


@cache
def palette(mode: str) -> dict[str, str]:
    """CSS variable -> colour for "light" or "dark" mode."""
    low, high = ORDERED_RANGE[mode]
    places = [low + (high - low) * i / (NUM_ORDERED - 1) for i in range(NUM_ORDERED)]
    ordered = {f"--ordered-{i}": to_hex(colormaps["viridis"](place)) for i, place in enumerate(places)}
    return {f"--method-{i}": colour for i, colour in enumerate(METHOD_COLOURS[mode])} | ordered


def palette_css(mode: str) -> str:
    """The palette as CSS declarations."""
    return " ".join(f"{name}: {colour};" for name, colour in palette(mode).items())


def drawn_colour(name: str) -> str:
    """The colour to draw with for a CSS variable, or for "ink" and "faint"."""
    return {"ink": INK, "faint": FAINT, **palette("light")}[name]


def embed(svg: str, description: str) -> str:
    """Cut what only a stand-alone file needs, leave colours and fonts to CSS."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r"font-family: [^;\"]*;? ?", "", body)
    # a hundredth of a point is finer than any screen
    body = re.sub(r' (?:d|x|y)="[^"]*"', lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found[0]).replace("\n", ""), body)
    body = body.replace(INK, "currentColor").replace(FAINT, "var(--faint)")
    for name, colour in palette("light").items():
        body = body.replace(colour, f"var({name})")
    view_box = re.search(r'viewBox="[^"]*"', body)
    assert view_box, "matplotlib writes a viewBox"
    alt = html.escape(description)
    opening = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'{view_box[0]} role="img" aria-label="{alt}"><title>{alt}</title>'
    )
    return re.sub(r"\n\s*", "\n", opening + body[body.index(">") + 1 :]).strip()


def shorten(svg: str) -> str:
    """The same drawing in fewer bytes, for a page that holds a hundred of them."""
    svg = re.sub(r' transform="rotate\(-0 [^"]*\)"|<defs>\s*</defs>\n?', "", svg)
    svg = re.sub(r' d="[^"]*"', lambda path: _shorten_path(path[0]), svg)
    # the link's older name
    return _without_bare_groups(svg.replace("xlink:href=", "href="))


def _without_bare_groups(svg: str) -> str:
    """Groups that say nothing of what they hold are taken off."""
    kept: list[bool] = []

    def keep(tag: re.Match[str]) -> str:
        if tag[0].startswith("</"):
            return tag[0] if kept.pop() else ""
        kept.append(not tag[0].startswith("<g>"))
        return tag[0] if kept[-1] else ""

    # an empty group is a tag of its own
    return re.sub(r"<g>\n?|<g [^>]*[^/>]>\n?|</g>\n?", keep, re.sub(r"<g/>\n?", "", svg))


def _shorten_path(path: str) -> str:
    # after "M" and "L" further pairs are lines too
    path = re.sub(r"(?<=\d) L ", " ", path)
    # in a line of many points a tenth of a point is fine enough
    path = re.sub(r"(\.\d)\d", r"\1", path) if len(path) > LONG_PATH else path
    return RECTANGLE.sub(_by_its_sides, path)


def _by_its_sides(rectangle: re.Match[str]) -> str:
    x, y, right, bottom = (float(number) for number in rectangle.groups())
    width, height = (f"{end - start:.2f}".rstrip("0").rstrip(".") for start, end in ((x, right), (y, bottom)))
    return f"M {rectangle[1]} {rectangle[2]} h {width} v {height} H {rectangle[1]} z"


def share_styles(page: str) -> str:
    """Turn the inline styles of a page's drawings into classes: every tick and mark of a kind looks the same."""
    names: dict[str, str] = {}

    def by_class(svg: re.Match[str]) -> str:
        return re.sub(r' style="([^"]*)"', lambda m: f' class="{names.setdefault(m[1], f"s{len(names)}")}"', svg[0])

    page = re.sub(r"<svg .*?</svg>", by_class, page, flags=re.DOTALL)
    rules = "".join(f".{name} {{ {style} }}\n" for style, name in names.items())
    return page.replace("</style>", f"{rules}</style>", 1)


def localise_ids(svg: str, prefix: str) -> str:
    """Drop ids that nothing refers to, name the others PREFIX-0, PREFIX-1, ...: on a page ids must be unique."""
    used = dict.fromkeys(re.findall(r'(?:url\(|href=")#([\w.-]+)', svg))
    names = {old: f"{prefix}-{number}" for number, old in enumerate(used)}
    svg = re.sub(r' id="([^"]+)"', lambda m: f' id="{names[m[1]]}"' if m[1] in names else "", svg)
    return re.sub(r'(url\(|href=")#([\w.-]+)', lambda m: f"{m[1]}#{names[m[2]]}", svg)
