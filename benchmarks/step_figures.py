"""A figure of where whole training steps spend their time, from records of `step_time` and `live_rebalance`."""

from collections.abc import Iterable, Sequence

from benchmarks.panels import Figure, Key, Panel
from benchmarks.point_panels import Part, Stack, stack_panel
from benchmarks.record import Record
from benchmarks.verdict import Interval, over_seeds

RATIO, SECONDS = "step_over_baseline", "step_seconds"
# as models.callbacks.step_timer names them, in the order of a step; how they look, and what the legend adds
PARTS = {
    "router": (Part("--method-3", "----"), "level stripes"),
    "dispatch": (Part("--method-0"), "plain"),
    "experts": (Part("--method-2", "////"), "striped"),
    "combine": (Part("--method-1", "||||"), "upright stripes"),
    "rest": (Part("--method-4", "\\\\\\\\"), "stripes the other way"),
    "rebalance": (Part("--method-5", "xxxx"), "crossed"),
}


def step_parts_figure(records: Sequence[Record]) -> Figure | None:
    """Whole steps as parts of the baseline's, a panel a setting, ground and start, a bar a variant."""
    rows = [record for record in records if record.metric == RATIO]
    found = {record.metric for record in records}
    parts = {part: look for part, (look, _) in PARTS.items() if f"{SECONDS}/{part}" in found}
    panels = []
    for where, ground, state in sorted({(row.where, row.ground, row.state) for row in rows}):
        here = [row for row in records if (row.where, row.ground, row.state) == (where, ground, state)]
        methods = dict.fromkeys(row.method for row in here if row.metric == RATIO)
        stacks = [_stack(method, [row for row in here if row.method == method], parts) for method in methods]
        limits = 0.0, max(sum(stack.parts) for stack in stacks)
        svg = stack_panel(stacks, list(parts.values()), "% of the baseline's step", limits)
        panels.append(Panel(", ".join([where, ground, *([] if state == "all" else [f"from {state}"])]), svg))
    caption = (
        "The first variant's whole step is 100 %; below it the others, trained in turns with it. Medians over blocks "
        "of steps, means over seeds; behind a bar the whole step with its 95 % interval. Waiting for a slower rank "
        "counts where it happens, in the router's part too: its losses sum loads over ranks."
    )
    keys = tuple(Key(f"{part} ({PARTS[part][1]})", look.colour, marker="■") for part, look in parts.items())
    return Figure("step_parts", "Where a step's time goes", caption, keys, tuple(panels)) if panels else None


def _stack(method: str, rows: Sequence[Record], parts: Iterable[str]) -> Stack:
    """A variant's parts, each scaled so that together they are the variant's share of the baseline's step."""
    of = {metric: over_seeds(row for row in rows if row.metric == metric) for metric in {row.metric for row in rows}}
    whole = of[RATIO]
    scale = 100 * whole.mean / of[SECONDS].mean
    return Stack(method, tuple(scale * of[f"{SECONDS}/{part}"].mean for part in parts), _text(whole))


def _text(whole: Interval) -> str:
    mean, half = 100 * whole.mean, 100 * (whole.high - whole.mean)
    return f"{mean:.0f} ± {half:.1f} %" if half > 0 else f"{mean:.0f} %"
