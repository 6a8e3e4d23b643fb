"""Write the tables of README.md and docs/ from results/*.json: python benchmarks/tables.py

Each table stands between `<!-- NAME -->` and `<!-- /NAME -->`; what is there is replaced.
"""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
FIGURES = ("accuracy", "fd_ratio", "told_apart", "copies")


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def row(name: str, figures: dict[str, float]) -> list[str]:
    return [name, *(f"{figures[figure]:.3f}" for figure in FIGURES)]


def digits(result: dict) -> str:
    rows = [row(name, figures) for name, figures in result["real_and_mixture"].items()]
    for w in ("w=0", "w=1"):
        rows.append(row(f"**Rectiflow, {w}, mean of five seeds**", result[w]["mean"]))
        rows += [row(f"seed {seed}", figures) for seed, figures in result[w]["seeds"].items()]
    return f"{table(['500 digits', *FIGURES], rows)}\n\n`{result['command']}`"


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


def dropout(result: dict) -> str:
    rows = []
    for share, weights in result["dropout"].items():
        rows += [row(f"{float(share):.0%}, {w}", figures["mean"]) for w, figures in weights.items()]
    return f"{table(['condition dropout', *FIGURES], rows)}\n\n`{result['command']}`"


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


def throughput(result: dict) -> str:
    machine, parts = result["machine"], []
    for kind, title in (("dit", "transformer, width 256, depth 6, patch 2, 4×16×16"), ("unet", "U-Net, 3×32×32")):
        entry = result[kind]
        rows = [[name, f"{rate:.1f}"] for name, rate in entry["images_per_second"].items()]
        parts.append(table([f"{title}: training", "images/s"], rows))
        sizes = "; ".join(
            f"{name} {facts['parameters'] / 1e6:.2f} M parameters, {facts['gflop_per_image']:.2f} GFLOP an image"
            for name, facts in entry["facts"].items()
        )
        parts.append(
            f"{sizes}. Our best over theirs in fp32: **{entry['ratio_to_fp32']:.2f}**; over their best: "
            f"**{entry['ratio_to_best']:.2f}**."
        )
        rows = [
            [name, str(row["steps"]), f"{row['held_out_loss']:.4f}"] for name, row in entry["equal_seconds"].items()
        ]
        parts.append(table(["after equal seconds", "steps", "held-out loss"], rows))
    matrix, rates = result["dit"]["matrix"], result["dit"]["sampling_images_per_second"]
    parts.append(
        f"Matrix products at the transformer's shapes run at {matrix['float32_gflops']:.0f} GFLOP/s in float32 and "
        f"{matrix['bfloat16_gflops']:.0f} in bfloat16; in float32 they are {matrix['float32_share_of_a_step']:.0%} of "
        f"an fp32 step and in bfloat16 {matrix['bfloat16_share_of_a_step']:.0%} of the best one. Sampling with the "
        f"transformer, 50 guided steps, images/s: {', '.join(f'{name} {rate:.2f}' for name, rate in rates.items())}."
    )
    where = f"{machine['processor']}, {machine['threads']} threads, {machine['instructions']}, torch {machine['torch']}"
    settings = result["settings"]
    parts.append(
        f"`{result['command']}` on {where}; batches of {settings['batch']}, {settings['optimiser']}, medians of "
        f"{settings['rounds']}."
    )
    return "\n\n".join(parts)


def data(result: dict) -> str:
    rows = [
        [f"{int(size):,}", f"{row['peak_megabytes']:,}", f"{row['share_of_a_step_spent_waiting']:.2%}"]
        for size, row in result["pictures"].items()
    ]
    return f"{table(['pictures', 'peak memory, MB', 'waiting for data'], rows)}\n\n`{result['command']}`"


def likelihood(result: dict) -> str:
    held_out, finer, few = result["held_out"], result["finer"]["ode"], result["finer"]["count"]
    titles = {
        "ode": f"the flow, by its ODE ({held_out['ode']['steps']} steps of {held_out['ode']['solver']})",
        "bound": "the flow, by its variational bound",
        "mixture": "a mixture of Gaussians for each class",
    }

    def bits(found: dict) -> str:
        return f"{found['bits_per_dim']:.3f} ± {found['standard_error']:.3f}"

    head = [f"{held_out['count']} held-out digits", "bits per dimension"]
    areas = ", ".join(f"{name} {area:.2f}" for name, area in result["area_under_curve"].items())
    return (
        f"{table(head, [[title, bits(held_out[name])] for name, title in titles.items()])}\n\n"
        f"With {finer['steps']} steps, on {few} of them: {bits(finer)}. Area under the curve of log p, held-out digits "
        f"against other pictures: {areas}.\n\n`{result['command']}`"
    )


def quality(result: dict) -> str:
    costs = (6, 12, 24, 50)
    by: dict[str, list[str]] = {}
    for found in result["rows"]:
        value = found["frechet"]
        by.setdefault(f"`{found['solver']}`", []).append(
            f"{value['value']:.2f} ({value['low']:.2f} to {value['high']:.2f}) at {found['evaluations']}"
        )
    rows = [[name, *cells] for name, cells in by.items()]
    return f"{table(['solver', *(f'about {cost}' for cost in costs)], rows)}\n\n`{result['command']}`"


def core(result: dict) -> str:
    scores, seconds = ("on_a_mode", "modes", "energy_distance", "told_apart"), result["settings"]["seconds"]
    ring = [
        [name, *(f"{(found.get('mean') or found)[score]:.3f}" for score in scores), str(found.get("steps", ""))]
        for name, found in result["ring"].items()
    ]
    pictures = [[*row(name, found["mean"]), str(found["steps"])] for name, found in result["digits"].items()]
    return "\n\n".join(
        [
            table([f"ring, {seconds['ring']:.0f} s", *(score.replace("_", " ") for score in scores), "steps"], ring),
            table([f"digits, {seconds['digits']:.0f} s", *FIGURES, "steps"], pictures),
            f"`{result['command']}`; means of {len(result['settings']['seeds'])} seeds, w = 0.",
        ]
    )


def evening(result: dict) -> str:
    losses = ", ".join(f"{loss:.3f} after {step}" for step, loss in result["held_out_loss"].items())
    return (
        f"First preview {result['first_preview_seconds']:.0f} s after the command, the whole in "
        f"{result['training_seconds'] / 60:.0f} minutes; held-out loss {losses}; "
        f"{result['waiting_for_data_median']:.1%} of the time went to waiting for data.\n\n`{result['train']}`, by "
        f"`{result['command']}`"
    )


def solvers(result: dict) -> str:
    limits = result["settings"]["evaluations"]
    header = ["", *(f"{problem}, {limit}" for problem in result["problems"] for limit in limits)]
    errors = {problem: found["errors"] for problem, found in result["problems"].items()}
    rows = [
        [
            f"`{name}`" if "diffusers" not in name else name,
            *(f"{e:.1e}" for by in errors.values() for e in by["uniform"][name]),
        ]
        for name in errors["H"]["uniform"]
    ]
    behind = []
    for problem, grids in errors.items():
        for grid, found in grids.items():
            theirs = {name: row for name, row in found.items() if "diffusers" in name}
            for place, limit in enumerate(limits):
                name, row = min(theirs.items(), key=lambda item, place=place: item[1][place])
                if row[place] < found["fast"][place]:
                    behind.append(
                        f"{problem}, {grid}, {limit}: {name} {row[place]:.1e}, fast {found['fast'][place]:.1e}"
                    )
    adaptive = "; ".join(
        f"{problem} " + ", ".join(f"{row['evaluations']} → {row['error']:.1e}" for row in found["rk45"].values())
        for problem, found in result["problems"].items()
    )
    parts = [
        table(header, rows),
        f"`rk45`, evaluations → error at tolerances {', '.join(result['problems']['A']['rk45'])}: {adaptive}.",
        f"Ahead of `fast` (the best of diffusers'): {'; '.join(behind) or 'none'}.",
        f"`{result['command']}`, diffusers {result['diffusers']}, {result['settings']['dtype']}.",
    ]
    return "\n\n".join(parts)


def where(machine: dict) -> str:
    return f"{machine['processor']}, {machine['threads']} threads, {machine['instructions']}, torch {machine['torch']}"


def latents(result: dict) -> str:
    rows = [
        [
            f"{int(count):,}",
            f"{found['anonymous_megabytes_encoding_peak']:.0f}",
            f"{found['anonymous_megabytes_final']:.0f}",
            f"{found['milliseconds_a_batch']:.2f}",
            f"{found['megabytes_on_disk']:.1f}",
        ]
        for count, found in result["pictures"].items()
    ]
    header = ["pictures", "encoding, MB", "after 200 batches, MB", "a batch of 64, ms", "on disk, MB"]
    return (
        f"{table(header, rows)}\n\nAnonymous memory of the process; pages of the mapped files are the system's to "
        f"drop. `{result['command']}`"
    )


def photos(result: dict) -> str:
    names = {"linear_code": "best linear code", "without": "no discriminator", "with": "with discriminator"}
    parts = []
    for title, entry in result.items():
        if not title.startswith("trained on"):
            continue
        rows = [
            [
                names[name],
                f"{found['psnr_unclipped']:.2f}",
                f"{found['ssim']:.3f}",
                f"{found['spectrum_error']:.2f}",
                f"{found['sharpness']:+.2f}",
                f"{found['gradient_correlation']:.3f}",
                f"{found['seconds'] / 60:.1f}" if "seconds" in found else "",
            ]
            for name, found in entry.items()
        ]
        lost = entry["without"]["psnr_unclipped"] - entry["with"]["psnr_unclipped"]
        share = entry["with"]["spectrum_error"] / entry["without"]["spectrum_error"]
        header = [title, "PSNR, dB", "SSIM", "spectrum error", "sharpness", "gradient correlation", "minutes"]
        parts.append(table(header, rows))
        parts.append(f"With the discriminator {share:.2f} of the spectrum's error, for {lost:.2f} dB.")
    settings = ", ".join(f"`{setting}`" for setting in result["settings"])
    parts.append(f"Recipe `autoencoder` with {settings}. `{result['command']}` on {where(result['machine'])}.")
    return "\n\n".join(parts)


def latent_scenes(result: dict) -> str:
    steps = [point["step"] for point in result["pixels"]["curve"]]
    rows = []
    for name, title in (("pixels", "pixels"), ("latents", "latents"), ("equivariant", "latents of an EQ-VAE")):
        entry = result[name]
        cells = [f"{p['frechet']:.1f} at {p['seconds']:.0f} s" for p in entry["curve"]]
        before = entry.get("autoencoder_seconds", 0) + entry.get("encoding_seconds", 0)
        rows.append([title, f"{before:.0f}", *cells])
    facts = "; ".join(
        f"{title}: PSNR {result[name]['held_out_psnr']:.1f} dB, reconstructions' distance "
        f"{result[name]['reconstruction_frechet']:.2f}"
        for name, title in (("latents", "autoencoder"), ("equivariant", "EQ-VAE"))
    )
    return "\n\n".join(
        [
            table(["", "seconds before", *(f"{step} steps" for step in steps)], rows),
            f"Fréchet distance to {result['count']} held-out scenes and the seconds of the flow's training; *seconds "
            f"before* are the autoencoder's training and the encoding. Real scenes have {result['real']:.2f}. {facts}. "
            f"`{result['command']}` on {where(result['machine'])}.",
        ]
    )


def autoencoder(result: dict) -> str:
    rows = []
    for name, entry in result.items():
        if "groups" not in name:
            continue
        for task in ("train", "decode", "encode"):
            rates = entry[task]["images_per_second"]
            rows.append(
                [
                    f"{name}: {task}",
                    f"{rates['rectiflow']:.1f}",
                    f"{rates['diffusers']:.1f}",
                    f"{entry[task]['ratio']:.2f}",
                ]
            )
    settings = result["settings"]
    return (
        f"{table(['images/s', 'rectiflow', 'diffusers', 'ratio'], rows)}\n\nWidths 32-64-128-128, 16 latent channels, "
        f"{settings['side']} px, batches of {settings['batch']}, {settings['optimiser']}, loss {settings['loss']}; "
        f"medians of {settings['rounds']} alternating rounds. `{result['command']}` on {where(result['machine'])}."
    )


def adherence(result: dict) -> str:
    found, names = result["sweep"], ("place", "colour", "digit", "whole")

    def shares(row: dict) -> list[str]:
        return [f"{row[name]['value']:.3f} ± {row[name]['error']:.3f}" for name in names]

    rows = []
    for part in ("seen", "held_out"):
        rows += [
            [part.replace("_", "-"), f"w = {row['w']:g}", *shares(row[part]), f"{row['frechet']:.2f}"]
            for row in found["rows"]
        ]
        rows += [
            [part.replace("_", "-"), "real, held-out writers: the ceiling", *shares(found["ceiling"][part]), ""],
            [part.replace("_", "-"), "real, training writers", *shares(found["imitation"][part]), ""],
        ]
    for kind, each in result["kinds"].items():
        for part in ("seen", "held_out"):
            named = f"w = {found['best_w']:g}, prompts of {kind} alone"
            rows.append([part.replace("_", "-"), named, *shares(each[part]), ""])
    header = ["combinations", "", "place", "colour", "digit", "whole prompt", "Fréchet distance"]
    curve = [
        [f"{point['minutes']:.0f}", f"{point['step'] * result['batch']:,}"]
        + [f"{point[part][name]:.3f}" for part in ("seen", "held_out") for name in names]
        for point in result["curve"]
    ]
    both = [f"{part} {name}" for part in ("seen:", "held-out:") for name in names]
    ways = result["sampling"]
    return (
        f"{table(header, rows)}\n\n{ways['prompts']} prompts, {ways['solver']} with {ways['steps']} steps, a flow of "
        f"{result['parameters'] / 1e6:.1f} M parameters; the most whole prompts at w = {found['best_w']:g}. On the "
        f"way, at that w ({ways['curve_prompts']} prompts; minutes of wall time, all counted):\n\n"
        f"{table(['minutes', 'pictures seen', *both], curve)}\n\n`{result['command']}` on {where(result['machine'])}; "
        f"{', '.join(result['settings'])}."
    )


def pictures(result: dict) -> str:
    parts = []
    for title, found in result["tables"].items():
        rows = [
            [name, f"{each['psnr']:.2f}" if each["psnr"] is not None else "exact", f"{each['ssim']:.3f}"]
            for name, each in found["scores"].items()
        ]
        parts.append(table([f"{title} ({found['count']} held out)", "PSNR, dB", "SSIM"], rows))
        parts.append(f"{found['steps']} steps; a sample, degraded again, is off by {found['consistency']:.3f}.")
    return "\n\n".join([*parts, f"`{result['command']}` on {where(result['machine'])}."])


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


TABLES = {
    "serving": serving,
    "pictures": pictures,
    "adherence": adherence,
    "latents": latents,
    "photos": photos,
    "latent_scenes": latent_scenes,
    "autoencoder": autoencoder,
    "solvers": solvers,
    "digits": digits,
    "speed": speed,
    "dropout": dropout,
    "switches": switches,
    "throughput": throughput,
    "data": data,
    "evening": evening,
    "likelihood": likelihood,
    "core_problem": core,
    "quality": quality,
}


def filled(text: str) -> str:
    """`text` with each table replaced by the one that the results give."""
    for name, make in TABLES.items():
        path = RESULTS / f"{name}.json"
        if path.exists():
            body = make(json.loads(path.read_text()))
            pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
            text = re.sub(pattern, lambda match, body=body: f"{match[1]}{body}\n{match[2]}", text, flags=re.DOTALL)
    return text


def main() -> None:
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
