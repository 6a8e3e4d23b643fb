"""Flows that are told what to make."""

from tables_of.markdown import table, where


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


TABLES = {
    "adherence": adherence,
    "pictures": pictures,
}
