"""A report as Markdown."""

import math
from typing import Any

_SCORES = {
    "frechet": "Fréchet distance",
    "kernel": "KID",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "told_apart": "told apart (½: not at all)",
}


CLIPS = " Samples are clips; a picture here is one frame of each, for those of one clip are no samples of their own."


def page(result: dict[str, Any]) -> str:
    """The page of what `evaluate` measured."""
    rows = "the frames of a clip in each row" if result.get("frames", 1) > 1 else "a row of each class"
    parts = [_head(result), _table(result), f"![samples, {rows}](samples.png)", _copies(result["copies"])]
    if "loss_by_noise" in result:
        parts.append(_loss(result["loss_by_noise"]))
    if "likelihood" in result:
        parts.append(_likelihood(result["likelihood"]))
    if "clip_score" in result:
        told = result["clip_score"]
        parts.append(f"CLIP score of samples {told['samples']:.2f}, of held-out pictures {told['real']:.2f}.")
    if "adherence" in result:
        parts.append(_adherence(result["adherence"]))
    if "restoration" in result:
        parts.append(_restoration(result["restoration"]))
    return "\n\n".join(parts) + "\n"


_RECONSTRUCTION = {
    "psnr": ("PSNR, dB", "higher is better"),
    "ssim": ("SSIM", "1 is equality"),
    "spectrum_error": ("spectrum error", "0 is equal sharpness at each frequency"),
    "sharpness": ("sharpness", "below 0 is blur, above 0 noise or artefacts"),
    "gradient_correlation": ("gradient correlation", "1 is equality; what is invented lowers it"),
}


def autoencoder_page(result: dict[str, Any]) -> str:
    """The page of what `evaluate_autoencoder` measured."""
    found = result["reconstruction"]
    shown = {name: "exact" if value is None else f"{value:.4g}" for name, value in found.items()}
    rows = [f"| {title} | {shown[name]} | {words} |" for name, (title, words) in _RECONSTRUCTION.items()]
    if "frechet" in result:
        distances = result["frechet"]
        words = f"by {distances['features']}; of one half of the pictures to the other {distances['halves']:.4g}"
        rows.append(f"| reconstruction Fréchet distance | {distances['reconstructions']:.4g} | {words} |")
        rows.append(f"| Fréchet distance of its prior | {distances['prior']:.4g} | why latents need a flow |")
    return "\n\n".join(
        [
            f"# {result['model'].get('model', 'autoencoder')}",
            f"Reconstructions of {result['count']} held-out pictures, from the means of their latents.",
            "\n".join(["| | | |", "| --- | --- | --- |", *rows]),
            *(f"Note: {note}" for note in result["notes"]),
            "![original, reconstruction, difference fourfold](reconstructions.png)",
            "Decoded from the prior, z ~ N(0, I), without a flow:",
            "![pictures of the prior](prior.png)\n",
        ]
    )


def cell(value: Any) -> str:
    """A figure, with its interval if it has one."""
    if isinstance(value, dict):
        return f"{value['value']:.4g} ({value['low']:.4g} to {value['high']:.4g})"
    return f"{value:.3f}"


def _head(result: dict[str, Any]) -> str:
    settings, cost, found = (result[name] for name in ("settings", "cost", "scores"))
    return (
        f"# {result['model'].get('model', 'model')}\n\n"
        f"{found['count']} samples by {settings['solver']}, {settings['steps']} steps, w = {settings['guidance']:g}, "
        f"seed {settings['seed']} ({cost['evaluations']} evaluations of the network for each, "
        f"{cost['seconds_per_100']} s for 100), beside as many held-out pictures, by {found['features']} "
        f"({found['dimension']} numbers each). *Real* is training pictures in the samples' place. Intervals: 95 %."
        f"{CLIPS if result.get('frames', 1) > 1 else ''}"
    )


def _table(result: dict[str, Any]) -> str:
    found, real = result["scores"], result["real"]
    rows = [f"| {title} | {cell(found[name])} | {cell(real[name])} |" for name, title in _SCORES.items()]
    notes = [f"\nNote: {note}" for note in found["notes"]]
    return "\n".join(["| score | samples | real |", "| --- | --- | --- |", *rows, *notes])


def _copies(copies: dict[str, float]) -> str:
    return (
        f"## Copies\n\n{copies['share']:.1%} of the samples lie nearer to a training picture than 99 % of training "
        "pictures to their nearest other one; of held-out pictures, which are no copies, "
        f"{copies['held_out_share']:.1%}. The closest pairs, samples above:\n\n![closest pairs](copies.png)\n\n"
        "![distances to the nearest training picture](nearest.png)"
    )


def _loss(loss: dict[str, Any]) -> str:
    verdict = "The model is overfitted." if loss["overfitted"] else "No sign of overfitting."
    return (
        f"## Loss by noise level\n\n{verdict} The held-out loss is {loss['excess']:+.1%} from the training loss.\n\n"
        "![loss by noise level](loss.png)"
    )


def _restoration(found: dict[str, Any]) -> str:
    rows = [
        f"| {name} | {'exact' if each['psnr'] is None else format(each['psnr'], '.2f')} | {each['ssim']:.3f} |"
        for name, each in found["scores"].items()
    ]
    table = "\n".join(["| | PSNR, dB | SSIM |", "| --- | --- | --- |", *rows])
    agree = ""
    if "consistency" in found:
        agree = (
            f"\n\nWhat would be given of a sample is off by {found['consistency']:.4f} from what was given (root mean "
            "square; pictures go from −1 to 1)."
        )
    return (
        f"## Against the truth\n\n{found['count']} held-out pictures, each given to the model.\n\n{table}{agree}\n\n"
        "![given, without a model, four samples, the mean of all, the truth](restoration.png)"
    )


def restoration_lines(found: dict[str, Any] | None) -> list[str]:
    """What to print of pictures against the truth; none of what was not measured."""
    if found is None:
        return []
    told = (f"{name} {each['psnr'] or math.inf:.2f}" for name, each in found["scores"].items())
    return [f"PSNR in dB against the truth: {', '.join(told)}"]


def _likelihood(bits: dict[str, Any]) -> str:
    titles = {"ode": "the flow, by its ODE", "bound": "its variational bound", "mixture": "a mixture of Gaussians"}
    rows = [
        f"| {title} | {bits[name]['bits_per_dim']:.3f} ± {bits[name]['standard_error']:.3f} |"
        for name, title in titles.items()
        if name in bits
    ]
    return "\n".join(
        [f"## Likelihood of {bits['count']} held-out pictures\n", "| | bits per dimension |", "| --- | --- |", *rows]
    )


_ADHERENCE = ("place", "colour", "digit", "direction", "speed", "identity", "strict_identity", "whole")


_IDENTITY = (
    " Identity: one digit in one colour in all frames but at most one in ten; beside it the share of clips in which it "
    "is so in all frames."
)


def _attributes(scores: dict[str, Any]) -> list[str]:
    return [name for name in _ADHERENCE if name in scores]


def _adherence(found: dict[str, Any]) -> str:
    rows = [(f"w = {row['w']:g}", row) for row in found["rows"]]
    rows.append(("real ones of held-out writers", found["ceiling"]))
    rows.append(("real ones of training writers", found["imitation"]))
    names = _attributes(found["ceiling"]["seen"])
    titles = {"whole": "whole prompt", "strict_identity": "in all frames"}
    heads = ["", "", *(titles.get(name, name) for name in names), "Fréchet distance"]
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for part in ("seen", "held_out"):
        for name, row in rows:
            cells = [row[part][each] for each in names]
            shares = " | ".join(f"{share['value']:.3f} ± {share['error']:.3f}" for share in cells)
            distance = f"{row['frechet']:.4g}" if "frechet" in row else ""
            lines.append(f"| {part.replace('_', '-')} | {name} | {shares} | {distance} |")
    table = "\n".join(lines)
    return (
        f"## Adherence to {found['prompts']} prompts\n\nShares of objects and prompts that a judge finds right, with "
        "their standard errors; held-out: digits in a colour that they never have in training."
        f"{_IDENTITY if 'identity' in names else ''}\n\n"
        f"{table}\n\nThe most whole prompts of seen combinations at w = {found['best_w']:g}.\n\n"
        "![adherence over guidance](adherence.png)"
    )


def adherence_lines(found: dict[str, Any] | None) -> list[str]:
    """What to print of adherence, a line for seen and one for held-out combinations; none of what was not measured."""
    if found is None:
        return []
    best = next(row for row in found["rows"] if row["w"] == found["best_w"])
    lines = []
    for part in ("seen", "held_out"):
        told = ", ".join(
            f"{name} {best[part][name]['value']:.3f} (real {found['ceiling'][part][name]['value']:.3f})"
            for name in _attributes(best[part])
        )
        lines.append(f"{part.replace('_', '-')} combinations at w = {best['w']:g}: {told}")
    return lines
