"""Training, sampling and start-up beside diffusers, and where the time goes."""

from collections.abc import Callable

from tables_of.markdown import table, where

NOT_YET = "Not measured yet."
AIMED = {"to_default": "diffusers' default", "to_best": "diffusers' best"}


def _told(entry: dict) -> str:
    """How a part was measured."""
    load = entry["load_average"]
    return (
        f"`{entry['command']}` on {where(entry['machine'])}; load average {load['before']:.1f} before and "
        f"{load['after']:.1f} after, other processes took {entry['cores_used_by_others']:.1f} cores meanwhile."
    )


def _of(result: dict, part: str, make: Callable[[dict], str]) -> str:
    return make(result[part]) if part in result and "machine" not in result else NOT_YET


def _ratio(found: dict, aim: float | None = None) -> str:
    aimed = "" if aim is None else f", aim ≥ {aim:g}"
    return f"**{found['ratio']:.2f}** ({found['least']:.2f} to {found['most']:.2f}{aimed})"


def _compared(title: str, found: dict, aims: dict) -> str:
    """A table of rates, and what they are to each other."""
    rows = [[name, f"{rate:.1f}" if rate >= 10 else f"{rate:.2f}"] for name, rate in found["images_per_second"].items()]
    ratios = "; ".join(
        f"over {words} ({found[name]['over'].split(' ', 1)[1]}): {_ratio(found[name], aims.get(name))}"
        for name, words in AIMED.items()
    )
    plain = found["as_it_comes_to_default"]
    return (
        f"{table([title, 'images/s'], rows)}\n\nOurs ({found['to_default']['of'].split(' ', 1)[1]}) {ratios}. "
        f"Not compiled ({plain['of'].split(' ', 1)[1]}), over their default: {_ratio(plain)}."
    )


def _sizes(entry: dict) -> str:
    return "; ".join(
        f"{name} {facts['parameters'] / 1e6:.2f} M parameters, {facts['gflop_per_image']:.2f} GFLOP an image"
        for name, facts in entry["facts"].items()
    )


def _network(entry: dict) -> str:
    settings = entry["settings"]
    parts = [
        _compared(f"{entry['title']}: training", entry, entry["aims"]),
        f"{_sizes(entry)}, forward and backward. Batches of {settings['batch']}, {settings['optimiser']}, fused unless "
        f"default; medians of {settings['rounds']} (least to most of the rounds' own ratios). {_told(entry)}",
    ]
    if "equal_seconds" in entry:
        rows = [
            [name, str(row["steps"]), f"{row['held_out_loss']:.4f}"] for name, row in entry["equal_seconds"].items()
        ]
        parts.append(table([f"after {settings['seconds']:g} seconds each", "steps", "held-out loss"], rows))
    return "\n\n".join(parts)


def _autoencoder(entry: dict) -> str:
    settings = entry["settings"]
    tables = [
        _compared(f"autoencoder, {settings['side']} px, {name}: training", entry[name], {})
        for name in ("alone", "against a discriminator")
    ]
    end = f"{_sizes(entry)}. Batches of {settings['batch']}, {settings['optimiser']}; medians of {settings['rounds']}."
    return "\n\n".join([*tables, f"{end} {_told(entry)}"])


def training(result: dict) -> str:
    if "machine" in result:
        return NOT_YET
    ways = {"dit": _network, "unet": _network, "mmdit": _network, "video": _network, "autoencoder": _autoencoder}
    return "\n\n".join(make(result[part]) for part, make in ways.items() if part in result) or NOT_YET


def sampling(result: dict) -> str:
    def made(entry: dict) -> str:
        settings = entry["settings"]
        titles = {"dit": "transformer", "unet": "U-Net"}
        tables = [_compared(f"{titles[kind]}: sampling", entry[kind], {}) for kind in titles if kind in entry]
        return "\n\n".join(
            [
                *tables,
                f"{settings['count']} guided pictures in {settings['steps']} steps; medians of {settings['rounds']}. "
                f"{_told(entry)}",
            ]
        )

    return _of(result, "sampling", made)


def startup(result: dict) -> str:
    def made(entry: dict) -> str:
        rows = [
            [name, *(f"{row[part]:.2f}" if part in row else "" for part in ("import", "load", "picture", "whole"))]
            for name, row in entry["seconds"].items()
        ]
        header = ["seconds", "importing", "loading", "the first picture", "the whole process"]
        settings = entry["settings"]
        return (
            f"{table(header, rows)}\n\nA U-Net of pictures {'×'.join(map(str, settings['shape']))}, "
            f"{settings['steps']} steps; medians of {settings['rounds']} fresh processes each. {_told(entry)}"
        )

    return _of(result, "startup", made)


def utilisation(result: dict) -> str:
    def made(entry: dict) -> str:
        rows = [
            [
                name,
                f"{side['images_per_second']:.2f}",
                f"{side['gflop_per_second']:.0f}",
                f"**{side['utilisation']:.0%}**",
                f"{side['utilisation_by_linear_maps']:.0%}",
            ]
            for name, side in entry["sides"].items()
        ]
        alone = "; ".join(
            f"{owner} {', '.join(f'{kind} {rate:.0f}' for kind, rate in rates.items())}"
            for owner, rates in entry["products_gflops"].items()
        )
        network, settings = entry["settings"]["network"], entry["settings"]
        header = ["", "images/s", "GFLOP/s", "of its products' rate", "of its linear maps' rate"]
        return (
            f"{table(header, rows)}\n\nWidth {network['width']}, depth {network['depth']}, {network['heads']} heads, "
            f"patch {network['patch']}, {'×'.join(map(str, settings['shape']))}, batches of {settings['batch']}, "
            f"{entry['precision']}; aim ≥ {entry['aim']:.0%} for ours. GFLOP/s of the products alone, at their shapes: "
            f"{alone}; of large square matrices {entry['large_square_gflops']:.0f}. Medians of {settings['rounds']}. "
            f"{_told(entry)}"
        )

    return _of(result, "utilisation", made)


def profile(result: dict) -> str:
    def made(entry: dict) -> str:
        recipes, aims = entry["recipes"], entry["aims"]
        names = list(dict.fromkeys(name for found in recipes.values() for name in found["shares"]))
        rows = [[name, *(f"{found['shares'].get(name, 0):.2%}" for found in recipes.values())] for name in names]
        rows += [
            ["logging, averages and checkpoints", *(f"**{found['kept_up']:.2%}**" for found in recipes.values())],
            ["the same by difference", *(f"{found['kept_up_by_difference']:.2%}" for found in recipes.values())],
        ]
        header = ["share of the loop's time", *(f"`{name}`" for name in recipes)]
        steps = "; ".join(
            f"{name} {found['steps']:,} steps of {found['step_seconds'] * 1000:.0f} ms, "
            f"its first batch after {found['first_batch_seconds']:.1f} s"
            for name, found in recipes.items()
        )
        return (
            f"{table(header, rows)}\n\nAims: data < {aims['data']:.0%}, logging, averages and checkpoints < "
            f"{aims['kept_up']:.0%}. {steps}, one checkpoint each; held-out checks and previews left out. By "
            f"difference: of processor seconds, to runs without any of the three. Medians of "
            f"{entry['settings']['rounds']}. {_told(entry)}"
        )

    return _of(result, "profile", made)


def ddp(result: dict) -> str:
    def made(entry: dict) -> str:
        rows = [
            [
                name,
                *(f"{found['medians'][way]['cpu']:.1f}" for way in ("one", "apart", "two")),
                f"**{found['added']:.1%}**",
                f"{found['added_by_being_two']:.1%}",
                f"{found['added_by_the_job']:.1%}",
                f"{found['added_with_start']:.1%}",
                f"{found['wall_ratio']:.2f}",
            ]
            for name, found in entry["cases"].items()
        ]
        header = ["processor seconds", "one process", "two apart", "two of a job", "added", "by being two"]
        header += ["by the job", "added, start included", "wall, two over one"]
        return (
            f"{table(header, rows)}\n\nThe same steps at the same batch, {entry['settings']['precision']}, a thread a "
            f"process; aim: added < {entry['aim']:.0%}. *Apart* are two at once that know nothing of each other, on "
            f"half the batch each. Medians of {entry['settings']['rounds']}. {_told(entry)}"
        )

    return _of(result, "ddp", made)


def gpu(result: dict) -> str:
    entry = result["dit-xl"]
    settings = entry["settings"]
    rows = []
    for name, rate in entry["images_per_second"].items():
        side = entry["sides"].get(name)
        shares = [""] * 2 if side is None else [f"**{side['utilisation']:.0%}**"]
        if side is not None:
            stated = side.get("utilisation_of_stated")
            shares.append("" if stated is None else f"{stated:.0%}")
        rows.append([name, f"{rate:.1f}", *shares, "" if side is None else f"{side['peak_memory_gb']:.1f}"])
    header = [f"DiT-XL/2 on {entry['gpu']}", "images/s", "of its products' rate", "of the stated rate", "memory, GB"]
    return (
        f"{table(header, rows)}\n\nOurs over diffusers' best: {_ratio(entry['to_best'])}. Batches of "
        f"{settings['batch']}, {'×'.join(map(str, settings['shape']))}, AdamW, flash attention; aim ≥ "
        f"{entry['aim']:.0%}. Medians of {settings['rounds']}. `{entry['command']}`, torch {entry['machine']['torch']}."
    )


def throughput(result: dict) -> str:
    """In short, for the README."""
    if "machine" in result:
        return _former(result)
    names = {"dit": "transformer", "unet": "U-Net", "mmdit": "two streams, captions", "video": "clips, captions"}
    found = {title: (result[part], result[part]["aims"]) for part, title in names.items() if part in result}
    if "autoencoder" in result:
        found |= {
            f"autoencoder, {way}": (result["autoencoder"][way], {}) for way in ("alone", "against a discriminator")
        }
    rows = [
        [f"training: {title}", *(_ratio(entry[name], aims.get(name)) for name in AIMED)]
        for title, (entry, aims) in found.items()
    ]
    if "sampling" in result:
        rows += [
            [f"sampling: {names[kind]}", *(_ratio(result["sampling"][kind][name]) for name in AIMED)]
            for kind in ("dit", "unet")
            if kind in result["sampling"]
        ]
    parts = [table(["our best, images/s, over", *AIMED.values()], rows)]
    if "startup" in result:
        seconds = result["startup"]["seconds"]
        parts.append(
            f"From the start of a process to its first picture: {seconds['rectiflow']['whole']:.1f} s, by diffusers "
            f"{seconds['diffusers']['whole']:.1f} s."
        )
    machines = dict.fromkeys(where(each["machine"]) for each in result.values())
    told = f"On {'; '.join(machines)}. Sizes, FLOPs, settings and commands of each: [docs/speed.md](docs/speed.md)."
    return "\n\n".join([*parts, told])


def _former(result: dict) -> str:
    """Of a file of the time before results had parts."""
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


TABLES = {
    "throughput": throughput,
    "throughput:training": training,
    "throughput:sampling": sampling,
    "throughput:startup": startup,
    "throughput:utilisation": utilisation,
    "throughput:profile": profile,
    "throughput:ddp": ddp,
    "throughput-h100": gpu,
    "throughput-h200": gpu,
}
