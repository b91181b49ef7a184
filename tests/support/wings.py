"""The picture of the folders of ``codexd/`` and their imports, drawn from the code."""

import tomllib
from collections.abc import Iterable
from html import escape

import grimp

from support.daemon import ROOT

WIDE, HIGH, ROW, LEFT = 190, 40, 74, 40
Edge = tuple[str, str]


def layers() -> list[list[str]]:
    """Returns the rows of the contract that all arrows follow, the top first."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (house,) = [each for each in contracts if each["type"] == "layers" and each["containers"] == ["codexd"]]
    return [[name.strip() for name in row.split("|")] for row in house["layers"]]


def imports() -> dict[Edge, int]:
    """Returns, for each folder or module and each that it imports from, how many of its modules do."""
    graph = grimp.build_graph("codexd", cache_dir=None)
    found: dict[Edge, int] = {}
    for module in graph.modules:
        for imported in graph.find_modules_directly_imported_by(module):
            edge = part(module), part(imported)
            if "" not in edge and edge[0] != edge[1]:
                found[edge] = found.get(edge, 0) + 1
    return found


def part(module: str) -> str:
    return module.removeprefix("codexd").lstrip(".").partition(".")[0]


def direct(edges: Iterable[Edge]) -> list[Edge]:
    """Returns the edges without those that a longer way implies: their picture can be read."""
    known = set(edges)
    targets: dict[str, set[str]] = {}
    for one, other in known:
        targets.setdefault(one, set()).add(other)

    def reached(start: str) -> set[str]:
        found = set(targets.get(start, ()))
        for each in list(found):
            found |= reached(each)
        return found

    return sorted(
        (one, other) for one, other in known if not any(other in reached(between) for between in targets[one] - {other})
    )


def drawn() -> str:
    """Returns the picture as SVG."""
    rows, edges = layers(), imports()
    width = 2 * LEFT + 2 * WIDE + 120
    places = {}
    for row, names in enumerate(rows):
        for column, name in enumerate(names):
            x = LEFT + 60 + (column * (WIDE + 60) if len(names) > 1 else (WIDE + 60) / 2)
            places[name] = x, 20 + row * ROW
    height = 20 + len(rows) * ROW
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="system-ui, sans-serif" '
        'font-size="14" role="img" aria-label="The folders of codexd and their imports">',
        '<defs><marker id="a" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 8 4 0 8z" fill="#64748b"/></marker></defs>',
        f'<rect width="{width}" height="{height}" rx="10" fill="#f8fafc"/>',
    ]
    for one, other in direct(edges):
        (x1, y1), (x2, y2) = places[one], places[other]
        from_x, to_x, from_y, to_y = x1 + WIDE / 2, x2 + WIDE / 2, y1 + HIGH, y2
        # An arrow past other rows takes a way around their boxes.
        bow = 0.0 if to_y - from_y <= ROW else (-1 if (from_x + to_x) / 2 <= width / 2 else 1) * (WIDE * 0.75 + 30)
        parts.append(
            f'<path d="M{from_x:.0f} {from_y} C{from_x + bow:.0f} {from_y + 26} {to_x + bow:.0f} {to_y - 26} {to_x:.0f} '
            f'{to_y - 2}" fill="none" stroke="#64748b" stroke-width="1.3" marker-end="url(#a)"/>'
        )
    for name, (x, y) in places.items():
        kind = 'fill="#dcfce7" stroke="#4ade80"' if name == "protocol" else 'fill="#fff" stroke="#94a3b8"'
        parts.append(
            f'<rect x="{x:.0f}" y="{y}" width="{WIDE}" height="{HIGH}" rx="8" {kind}/>'
            f'<text x="{x + WIDE / 2:.0f}" y="{y + 25}" text-anchor="middle" font-weight="600" fill="#0f172a">'
            f"{escape(name)}</text>"
        )
    return "\n".join([*parts, "</svg>", ""])
