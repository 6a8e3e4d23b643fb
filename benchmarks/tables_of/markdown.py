"""What the tables share."""

FIGURES = ("accuracy", "fd_ratio", "told_apart", "copies")


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def row(name: str, figures: dict[str, float]) -> list[str]:
    return [name, *(f"{figures[figure]:.3f}" for figure in FIGURES)]


def where(machine: dict) -> str:
    return f"{machine['processor']}, {machine['threads']} threads, {machine['instructions']}, torch {machine['torch']}"
