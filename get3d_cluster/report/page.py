"""The report of a run: one HTML file beside its data, with relative links only."""

import os
from pathlib import Path

import jinja2

from get3d_cluster.errors import UsageError
from get3d_cluster.report import axes
from get3d_cluster.report.attempts import attempt_rows, time_spent, tone
from get3d_cluster.report.axes import short_number
from get3d_cluster.report.cameras import histograms
from get3d_cluster.report.curves import charts
from get3d_cluster.report.evaluations import evaluation_tables
from get3d_cluster.report.headline import details, state, tiles
from get3d_cluster.report.pictures import mesh_cards, sample_series
from get3d_cluster.report.reading import RunFacts, read_run, whole
from get3d_cluster.report.rendering import rendering_of
from get3d_cluster.report.timeline import timeline
from get3d_cluster.report.viewer import write_viewer
from get3d_cluster.report.words import duration, link
from get3d_cluster.runtime.goodput import goodput_of
from get3d_cluster.runtime.run_folder import RunFolder
from get3d_cluster.storage.local import write_atomic

REPORT = "report.html"


def write_report(run_path: Path) -> Path:
    """Write ``report.html`` into the run folder from its files alone, and return its path.

    Whatever is absent or torn is left out.

    Raises: UsageError if there is no such folder; StorageError if it cannot be written.
    """
    if not run_path.is_dir():
        raise UsageError(f"{run_path} is no run folder", "list runs with: python launch.py status")
    target, facts = run_path / REPORT, read_run(run_path)
    viewer = write_viewer(run_path, facts.meshes)
    write_atomic(target, page(facts, run_path, viewer).encode(errors="replace"))
    return target


def page(facts: RunFacts, run_path: Path, viewer: Path | None = None) -> str:
    """Return the report as HTML; ``run_path`` is asked for file sizes and for where the time went.

    ``viewer`` is a page in the run folder that shows the meshes.
    """
    goodput = goodput_of(RunFolder(run_path))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"duration": duration, "tone": tone, "short": short_number}
    environment.filters["link"] = lambda target: link(Path(os.path.relpath(target, run_path)))
    resumed = [whole(e.fields.get("step")) for e in facts.events if e.name == "resume"]
    return environment.get_template("template.html").render(
        facts=facts,
        state=state(facts),
        tiles=tiles(facts),
        details=details(facts),
        rows=attempt_rows(facts),
        timeline=timeline(facts),
        share=goodput.share,
        spent=[("all", time_spent(goodput.total))]
        + [(f"attempt {number}", time_spent(item)) for number, item in goodput.attempts.items()],
        charts=charts(facts.measurements, resumed) if facts.measurements else [],
        paper=axes,
        evaluations=evaluation_tables(facts.evaluations),
        rendering=rendering_of(facts.config),
        cameras=histograms(facts.cameras) if facts.cameras else [],
        samples=sample_series(facts.samples),
        reals=link(facts.reals) if facts.reals else "",
        meshes=mesh_cards(facts.meshes, run_path),
        viewer=link(viewer) if viewer else "",
    )
