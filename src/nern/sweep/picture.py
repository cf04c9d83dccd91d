"""The picture of tables: what `analysis.curve_plot` draws, from rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nern.sweep.groups import groups_of
from nern.sweep.published import published_of
from nern.sweep.table import Row


def draw(path: str | Path, rows: Sequence[Row]) -> None:
    """Write the picture (PNG): gap to the original over parameters, a panel for each network and task."""
    from nern.analysis.curve_plot import Curve, Panel, plot_curves  # matplotlib takes a second to import

    panels = []
    for (network, task), groups in groups_of(rows).items():
        curves: dict[str, Curve] = {}
        for group in groups:
            gaps = [row["gap"] for row in group.rows if row["gap"] is not None]
            if gaps:
                curves.setdefault(group.label, Curve(group.label, [])).points.append((group.parameters, gaps))
        published = [(point.label, point.parameters, point.gap) for point in published_of(network, task)]
        represented = {row["represented"] for group in groups for row in group.rows}
        whole = represented.pop() if len(represented) == 1 else None
        panels.append(Panel(f"{network} on {task}", list(curves.values()), published, whole))
    plot_curves(path, panels)
