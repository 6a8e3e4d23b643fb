"""What is learnt on digits, and how well flows are sampled."""

from tables_of.markdown import FIGURES, row, table


def digits(result: dict) -> str:
    rows = [row(name, figures) for name, figures in result["real_and_mixture"].items()]
    for w in ("w=0", "w=1"):
        rows.append(row(f"**Rectiflow, {w}, mean of five seeds**", result[w]["mean"]))
        rows += [row(f"seed {seed}", figures) for seed, figures in result[w]["seeds"].items()]
    return f"{table(['500 digits', *FIGURES], rows)}\n\n`{result['command']}`"


def dropout(result: dict) -> str:
    rows = []
    for share, weights in result["dropout"].items():
        rows += [row(f"{float(share):.0%}, {w}", figures["mean"]) for w, figures in weights.items()]
    return f"{table(['condition dropout', *FIGURES], rows)}\n\n`{result['command']}`"


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


TABLES = {
    "digits": digits,
    "dropout": dropout,
    "core_problem": core,
    "quality": quality,
    "likelihood": likelihood,
    "solvers": solvers,
}
