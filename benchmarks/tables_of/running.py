"""Seconds, memory and rates of training, data and serving."""

from rectiflow.recipes.registry import RECIPES
from tables_of.markdown import table, where


def speed(result: dict) -> str:
    machine = result["machine"]

    def median(name: str) -> str:
        each = result["each"][name]
        return f"{result['median_seconds'][name]:.2f} ({min(each):.2f} to {max(each):.2f})"

    rows = [
        [f"training, {result['training_steps']} steps", f"{result['training_seconds']:.0f}"],
        ["sampling 500 digits, 50 Euler steps, w=1", median("sample_500_digits_50_steps_w1")],
        ["`rectiflow --help`", median("rectiflow_help")],
    ]
    where = f"{machine['processor']}, {machine['threads']} threads, {machine['instructions']}, torch {machine['torch']}"
    repeats = len(next(iter(result["each"].values())))
    return f"{table(['', 'seconds'], rows)}\n\n`{result['command']}` on {where}; medians of {repeats} (least to most)."


def switches(result: dict) -> str:
    machine, settings = result["machine"], result["settings"]
    speeds = [
        [
            f"`{name}`" if "=" in name else name,
            f"{found['images_per_second']:.0f}",
            f"{found['ratio']:.2f} ({min(found['ratios']):.2f} to {max(found['ratios']):.2f})",
            f"{found['kept_megabytes']:.0f}",
        ]
        for name, found in result["speed"].items()
    ]
    losses = []
    for name, found in result["loss"].items():
        each = ", ".join(f"{loss:.4f}" for loss in found["each"])
        losses.append([name.replace(" of length 0.05, length", " of length"), f"{found['mean']:.4f}", each])
    where = (
        f"{machine['processor']}, {machine['threads']} thread, {machine['instructions']}, torch {machine['torch']}, "
        f"load average {result['load_average'][0]:.1f} on {machine['cores']} cores"
    )
    return "\n\n".join(
        [
            table(["switch", "images/s", "to the baseline's (least to most)", "kept, MB"], speeds),
            table([f"digits, {settings['steps']} steps", "held-out loss", "each seed"], losses),
            f"`{result['command']}` on {where}; medians of {settings['pairs']} pairs.",
        ]
    )


def data(result: dict) -> str:
    rows = [
        [f"{int(size):,}", f"{row['peak_megabytes']:,}", f"{row['share_of_a_step_spent_waiting']:.2%}"]
        for size, row in result["pictures"].items()
    ]
    return f"{table(['pictures', 'peak memory, MB', 'waiting for data'], rows)}\n\n`{result['command']}`"


def streams(result: dict) -> str:
    rows = [
        [
            kind,
            f"{found['rows_looked_through_a_processor_second']:,}",
            f"{found['rows_a_processor_second']:,}",
            *(f"{rate:,}" for rate in found["rows_a_second"].values()),
        ]
        for kind, found in result["kinds"].items()
    ]
    header = ["", "looked through", "read and decoded", "a second, no workers", "2 workers"]
    return (
        f"{table(header, rows)}\n\nRows of {result['bytes_of_a_picture'] / 1000:.0f} kB, the first two columns per "
        f"second of processor time, the others per second at a load of {result['load']:g}. `{result['command']}` on "
        f"{where(result['machine'])}."
    )


def evening(result: dict) -> str:
    losses = ", ".join(f"{loss:.3f} after {step}" for step, loss in result["held_out_loss"].items())
    return (
        f"First preview {result['first_preview_seconds']:.0f} s after the command, the whole in "
        f"{result['training_seconds'] / 60:.0f} minutes; held-out loss {losses}; "
        f"{result['waiting_for_data_median']:.1%} of the time went to waiting for data.\n\n`{result['train']}`, by "
        f"`{result['command']}`"
    )


def serving(result: dict) -> str:
    loads = [(each, result[f"{each}_a_request"]) for each in (1, 4)]
    rows = [
        [
            str(each),
            f"{found['requests']:,}",
            str(found["failures"]),
            f"{found['pictures_a_second']:.1f}",
            f"{found['offline_pictures_a_second']:.1f}",
            f"{found['of_offline']:.0%}",
            f"{found['p50_seconds']:.2f}",
            f"{found['p99_seconds']:.2f}",
            str(found["furthest_grey_levels"]),
        ]
        for each, found in loads
    ]
    header = [
        "pictures a request",
        "answers",
        "failures",
        "pictures/s",
        "the library alone",
        "share",
        "p50, s",
        "p99, s",
    ]
    ways = f"{result['clients']} clients for {result['seconds']:g} s, {result['steps']} Euler steps"
    return (
        f"{table([*header, 'grey levels off'], rows)}\n\n{ways}, w = {result['guidance']:g}. "
        f"`{result['command']}` on {where(result['machine'])}."
    )


def _smaller(than: dict[str, int]) -> str:
    size = f"at {than['size']}×{than['size']}, " if "size" in than else ""
    first = f", of the autoencoder {than['first']}" if "first" in than else ""
    return f"{size}batches of {than['batch']}{first}"


def plan(result: dict) -> str:
    measured = {name: result[name] for name in RECIPES if name in result}
    rows = [
        [
            name,
            *(f"{found[each]['seconds']:.0f}" for each in ("forecast", "measured")),
            *(f"{found[each]['cpu_seconds']:.0f}" for each in ("forecast", "measured")),
            *(f"{found[each]['peak_bytes'] / 1e6:,.0f}" for each in ("forecast", "measured")),
            *(f"{found['ratio'][each]:.2f}" for each in ("seconds", "cpu_seconds", "peak_bytes", "disk_bytes")),
            f"{100 * found['share_of_steps']:.0f} %",
            f"{found['plan_seconds']:.0f}",
        ]
        for name, found in measured.items()
    ]
    header = ["", "seconds, forecast", "run", "processor, forecast", "run", "memory, MB, forecast", "run"]
    header += ["seconds", "processor", "memory", "disk", "of it steps", "told after, s"]
    smaller = "; ".join(
        f"{name} {_smaller(each)}"
        for name, each in ((name, found.get("smaller")) for name, found in measured.items())
        if each
    )
    machines: dict[str, list[str]] = {}
    for name, found in measured.items():
        machines.setdefault(where(found["machine"]), []).append(name)
    ran = "; ".join(f"{', '.join(names)} on {machine}" for machine, names in machines.items())
    missing = ", ".join(name for name in RECIPES if name not in measured)
    return (
        f"{table(header, rows)}\n\nForecast over measured; *of it steps* is the part of the forecast time that is "
        "steps of training, the rest being what is done between them, latents and scores. Short runs"
        f"{f' ({smaller})' if smaller else ''} by `python benchmarks/plan.py`: {ran}."
        f"{f' Not measured yet: {missing}.' if missing else ''}"
    )


TABLES = {
    "plan": plan,
    "speed": speed,
    "switches": switches,
    "data": data,
    "streams": streams,
    "evening": evening,
    "serving": serving,
}
