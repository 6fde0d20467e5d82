"""Bars beside each other as SVG: for each row what each target reached, as a share of one of them."""

import html

WIDTH, LEFT, RIGHT, BAR, GAP, TOP = 860, 300, 90, 13, 16, 70
COLOURS = ["#9aa5b1", "#c3cbd4", "#7f9fbf", "#b58a6a", "#8fae8b", "#5f8a7a", "#c0392b"]


def svg(title, note, rows, targets):
    """`rows` is [(label, {target: value or None})], `targets` {target: name}; values are ratios, 1 has a line."""
    largest = max((value for _, values in rows for value in values.values() if value), default=1)
    shown = min(largest, 6)
    scale = (WIDTH - LEFT - RIGHT) / shown
    lines, y = [], TOP
    for label, values in rows:
        present = [name for name in targets if values.get(name) is not None]
        middle = y + len(present) * BAR / 2
        lines.append(f'<text x="{LEFT - 10}" y="{middle + 4:.0f}" text-anchor="end">{html.escape(label)}</text>')
        for name in present:
            value = values[name]
            length = min(value, shown) * scale
            colour = COLOURS[list(targets).index(name) % len(COLOURS)]
            lines.append(f'<rect x="{LEFT}" y="{y}" width="{length:.1f}" height="{BAR - 2}" fill="{colour}"/>')
            lines.append(f'<text class="small" x="{LEFT + length + 4:.1f}" y="{y + BAR - 4}">{value:.2f}{" →" if value > shown else ""}</text>')
            y += BAR
        y += GAP
    one = LEFT + scale
    lines.append(f'<line x1="{one:.1f}" y1="{TOP - 6}" x2="{one:.1f}" y2="{y - GAP + 4}" stroke="#333" stroke-dasharray="3 3"/>')
    legend, x = [], 12
    for index, name in enumerate(targets.values()):
        legend.append(f'<rect x="{x}" y="{TOP - 30}" width="10" height="10" fill="{COLOURS[index % len(COLOURS)]}"/>')
        legend.append(f'<text class="small" x="{x + 14}" y="{TOP - 21}">{html.escape(name)}</text>')
        x += 24 + 5 * len(name)
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" width="{WIDTH}" height="{y}" role="img">',
        "<style>text{font:13px sans-serif;fill:#222}.small{font-size:10px}.head{font-size:16px;font-weight:bold}</style>",
        f'<rect width="{WIDTH}" height="{y}" fill="#fff"/>',
        f'<text class="head" x="12" y="22">{html.escape(title)}</text><text class="small" x="{LEFT + 160}" y="22">{html.escape(note)}</text>',
        *legend, *lines, "</svg>", ""])
