"""Autoencoders, and flows in their latents."""

from tables_of.markdown import table, where


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


TABLES = {
    "latents": latents,
    "photos": photos,
    "latent_scenes": latent_scenes,
    "autoencoder": autoencoder,
}
