"""Clips."""

from tables_of.markdown import table, where

_COLUMNS = (("megabytes", ".0f"), ("seconds", ".2f"))
_OF_A_FRAME = (("megabytes", ".0f"), ("seconds_a_frame", ".2f"))


def video_length(result: dict) -> str:
    flows, space, parts = result["networks"], result["autoencoder"], []
    header = ["frames", "attention", "tokens", "training, MB", "training, s", "sampling, MB", "sampling, s a call"]
    for size, found in flows.items():
        rows = [
            [
                frames,
                attention,
                f"{found['tokens'][frames]:,}",
                *(f"{each[task][name]:{form}}" for task in ("train", "sample") for name, form in _COLUMNS),
            ]
            for frames in found["tokens"]
            for attention, each in ((kind, found[kind][frames]) for kind in ("full", "factorised"))
        ]
        parts.append(table([f"clips of {size}: {header[0]}", *header[1:]], rows))
    rows = [
        [
            frames,
            *(f"{each[task][name]:{form}}" for task in ("encode", "decode") for name, form in _OF_A_FRAME),
            f"{each['decode']['result_megabytes']:.0f}",
        ]
        for frames, each in space["frames"].items()
    ]
    header = ["encoding, MB", "encoding, s a frame", "decoding, MB", "decoding, s a frame", "the clip itself, MB"]
    parts.append(table([f"autoencoder, clips of {space['side']}×{space['side']}: frames", *header], rows))
    network, loads = result["network"], result["load_average"]
    parts.append(
        f"Peak resident memory of a process of its own for each case, beyond what it holds before with weights and "
        f"batch, where the allocator gives back what is freed; of the autoencoder beyond the clip and the result too. "
        f"Training is one step forward and backward in bfloat16 autocast, gradients counted, moments of the optimiser "
        f"not; sampling is {result['calls']} Euler steps in float32. Batches of "
        f"{result['batch']} clips, a transformer of width {network['width']}, depth {network['depth']} and patch "
        f"{network['patch']} ({result['parameters'] / 1e6:.1f} M parameters), not compiled; captions of "
        f"{result['caption_tokens']} tokens. The autoencoder takes one clip, at most {space['chunk_frames']} frames at "
        f"once. Seconds are the processor's, of one thread; medians of {result['rounds']} rounds in which the cases "
        f"take turns. `{result['command']}` on {where(result['machine'])}; load average {loads['before']:.1f} before "
        f"and {loads['after']:.1f} after; other processes took {result['others']:.1f} cores meanwhile."
    )
    return "\n\n".join(parts)


_READ = ("digit", "colour", "direction", "speed", "identity", "strict_identity", "whole")


def _shares(scores: dict | None) -> list[str]:
    return ["" if scores is None else f"{scores[name]['value']:.3f}" for name in _READ]


def _mean(rows: list[dict], part: str) -> dict:
    """Over seeds, of equally many clips each."""
    return {name: {"value": sum(row[part][name]["value"] for row in rows) / len(rows)} for name in _READ}


def clips(result: dict) -> str:
    header = ["digit", "colour", "direction", "speed", "identity", "in every frame", "whole"]
    w, seeds = result["sampling"]["w"], result["seeds"]
    apart, alike = (result["stills"][name] for name in ("noise of its own", "the same noise"))
    real, given = result["through_autoencoder"], result["from_a_frame"]
    sweep = result["sweep"]
    both = [
        (f"prompts, w = {w:g}", _mean(seeds, "seen"), _mean(seeds, "held_out")),
        ("real clips, untouched", real["untouched"]["seen"], real["untouched"]["held_out"]),
        (f"through the autoencoder ({real['psnr']:.1f} dB)", real["adherence"]["seen"], real["adherence"]["held_out"]),
        ("ceiling", sweep["ceiling"]["seen"], sweep["ceiling"]["held_out"]),
        ("begun with a given frame", given["adherence"]["seen"], given["adherence"]["held_out"]),
        ("17 pictures, each of its own noise", apart["seen"], apart["held_out"]),
        ("17 pictures of one noise", alike["seen"], alike["held_out"]),
    ]
    rows = [
        [f"{name}; combinations {kind}", *_shares(scores)]
        for name, seen, novel in both
        for kind, scores in (("seen", seen), ("held out", novel))
    ]
    main = table(["clips", *header], rows)
    swept = table(
        ["w", "Fréchet distance of a frame", *header],
        [[f"{row['w']:g}", f"{row['frechet']:.3f}", *_shares(row["seen"])] for row in sweep["rows"]],
    )
    curve = table(
        ["minutes", "step", *header],
        [[f"{r['minutes']:.0f}", str(r["step"]), *_shares(r["seen"])] for r in result["curve"]],
    )
    before = "; ".join(
        f"{each['recipe']} on {each['data']}, {each['steps']:,} steps of {each['batch']}, {each['minutes']:.0f} minutes"
        for each in result["autoencoders"]
    )
    asked = result["sampling"]
    return "\n\n".join(
        [
            main,
            swept,
            curve,
            f"A transformer of {result['parameters'] / 1e6:.1f} M parameters, {result['steps']:,} steps of "
            f"{result['batch']}{f', after {before}' if before else ''}; minutes are of all of it, "
            f"{result['threads']} thread(s). {asked['solver']}, {asked['steps']} steps; {asked['prompts']} prompts for "
            f"each of the seeds {', '.join(map(str, asked['seeds']))}, chosen beforehand; w by the sweep, of another "
            f"seed and other prompts, combinations seen. The given frame is kept to "
            f"{given['psnr_of_mean_error']:.1f} dB (worst {given['psnr_least']:.1f}). "
            f"`{result['command']}` on {where(result['machine'])}.",
        ]
    )


TABLES = {"clips": clips, "video_length": video_length}
