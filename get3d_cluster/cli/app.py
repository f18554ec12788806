"""The verbs. Each looks its arguments up, calls one function that decides or acts, and shows the result."""

# ruff: noqa: FBT002, PLR0913, PLR0917  Typer makes the options of a verb from its parameters

import dataclasses
import shlex
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from get3d_cluster import config as configs
from get3d_cluster.cli import (
    attached,
    chain,
    checks,
    doctor,
    key_table,
    logs,
    runs,
    status,
    stopping,
    submission,
    weights,
)
from get3d_cluster.cli.chain import ChainCommand
from get3d_cluster.cli.facts import Inquiry
from get3d_cluster.cli.output import UNBROKEN_COLUMNS, console, duration, say, say_json, table
from get3d_cluster.cli.status_table import status_table
from get3d_cluster.cli.watch import Ending, watch
from get3d_cluster.core.job import Cause
from get3d_cluster.demo import DemoConfig, run_demo
from get3d_cluster.errors import DifferenceError, UsageError
from get3d_cluster.runtime.run_folder import RunFolder
from get3d_cluster.storage.local import write_atomic

START, WATCH, STOP, LOOK, CHECK = (
    "Start something",
    "Watch it",
    "Stop it and come back",
    "Look at what it made",
    "Check before you trust",
)

app = typer.Typer(
    help="Train GET3D on a cluster that may take its machines back at any moment, without losing a step.\n\n"
    "A run is a configuration and a folder (runs/NAME). The same command again continues it.",
    epilog="Begin with: python launch.py doctor. Settings follow the job as key=value: python launch.py run train "
    "--config tiny_cpu num_images=8000. --debug shows the traceback of an error.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Job = Annotated[
    str, typer.Argument(metavar="JOB", help="A file in jobs/, such as train, or a dotted module name.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE", help="Settings: workers_per_node=2, optim.lr_generator=1e-3; the last one wins."
    ),
]
Run = Annotated[
    str, typer.Argument(metavar="RUN", help="Name of a run below --runs, or the path of its folder.")
]
MaybeRun = Annotated[
    str | None, typer.Argument(metavar="RUN", help="A run's name or path; without it: all runs.")
]
RunsDir = Annotated[Path, typer.Option("--runs", metavar="DIR", help="Folder of the runs.")]
Name = Annotated[
    str, typer.Option("--name", "-n", metavar="NAME", help="Default: that of the config file, or the job's.")
]
ConfigFile = Annotated[
    str,
    typer.Option("--config", "-c", metavar="FILE", help="A YAML file, or the name of one in jobs/configs."),
]
Cluster = Annotated[
    str, typer.Option("--cluster", metavar="NAME", help="Scheduler; default: local, or the run's.")
]
After = Annotated[
    list[str] | None,
    typer.Option(
        "--after",
        metavar="RUN",
        help="Start once this run is DONE; repeatable. A run keeps what it waits for; none: wait for no run any more.",
    ),
]
Then = Annotated[
    list[str] | None,
    typer.Option(
        chain.THEN,
        metavar="JOB ...",
        help="Next link: it starts once the one before is DONE. Its words are those of a job of its own; "
        "--cluster, --runs and --allow-config-change hold for all links.",
    ),
]
AllowChange = Annotated[
    bool,
    typer.Option("--allow-config-change", help="Continue a run even with keys that change what it computes."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Now = Annotated[
    bool, typer.Option("--now", help="Do not wait for the attempt to save: the last checkpoint stands.")
]
NamesFile = Annotated[
    Path | None,
    typer.Option(
        "--names",
        metavar="FILE",
        help="A YAML file with names that the table lacks: docs/published_weights.md.",
    ),
]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Return when the run has saved and left.")]

RUNS_DIR = Path("runs")
SIMULATIONS_DIR = Path("runs") / "simulations"


@app.command(rich_help_panel=START, cls=ChainCommand)
def submit(
    context: typer.Context,
    job: Job,
    overrides: Overrides = None,
    runs_dir: RunsDir = RUNS_DIR,
    name: Name = "",
    config: ConfigFile = "",
    cluster: Cluster = "",
    after: After = None,
    allow_config_change: AllowChange = False,
    _then: Then = None,
) -> None:
    r"""Queue a run and return at once. The same command again continues it, or says where it is.

    Several jobs become a chain: each link after --then has its own settings,
    --config and --name, and starts once the one before is DONE, however often
    that one was preempted. All links are checked before the first is queued.

    Example: python launch.py submit train --config car --after pack

    Example: python launch.py submit render models=ShapeNet out=images array=40 \
    --then pack images=images out=data --name cars \
    --then train --config car data.path=data --cluster slurm
    """
    requests = _requests(context, job, overrides, runs_dir, name, config, cluster, after, allow_config_change)
    links = submission.prepare_chain(requests)
    if len(links) == 1:
        _tell(links[0].run, submission.submit(links[0]), runs_dir)
        return
    for link, submitted in zip(links, submission.submit_chain(links), strict=True):
        say(_became(link.run, submitted, runs_dir))
    say(f"  watch   python launch.py status --watch{_where(runs_dir)}")


@app.command(rich_help_panel=START)
def run(
    job: Job,
    overrides: Overrides = None,
    runs_dir: RunsDir = RUNS_DIR,
    name: Name = "",
    config: ConfigFile = "",
    after: After = None,
    allow_config_change: AllowChange = False,
) -> int:
    """Run on this machine and stay with it. Ctrl-C once saves and suspends, twice stops it now.

    Example: python launch.py run train --config tiny_cpu
    """
    prepared = submission.prepare(
        _request(job, overrides, runs_dir, name, config, "local", after, allow_config_change)
    )
    _tell(prepared.run, submission.submit(prepared), runs_dir)
    return 0 if prepared.run.is_done() else attached.stay(prepared.run, prepared.scheduler)


@app.command(rich_help_panel=START, cls=ChainCommand)
def plan(
    context: typer.Context,
    job: Job,
    overrides: Overrides = None,
    runs_dir: RunsDir = RUNS_DIR,
    name: Name = "",
    config: ConfigFile = "",
    cluster: Cluster = "",
    after: After = None,
    allow_config_change: AllowChange = False,
    as_json: AsJson = False,
    _then: Then = None,
) -> None:
    """Show what submit would ask of the scheduler, and change nothing. On SLURM: the batch script and its flags.

    Example: python launch.py plan train --config car workers_per_node=4

    Example: python launch.py plan train --config car --cluster slurm partition=low
    """
    requests = _requests(context, job, overrides, runs_dir, name, config, cluster, after, allow_config_change)
    plans = [_plan_of(link) for link in submission.prepare_chain(requests)]
    if as_json:
        say_json(plans if len(plans) > 1 else plans[0])
        return
    for number, values in enumerate(plans):
        say(
            "\n" * bool(number)
            + f"{values['does']} {values['run']} ({values['job']}, scheduler {values['scheduler']})"
        )
        for item in values["changed"]:
            say(f"  {item.path}: {configs.show(item.old)} -> {configs.show(item.new)}")
        say(values["plan"])


@app.command(name="config", rich_help_panel=START)
def show_config(
    job: Job, overrides: Overrides = None, config: ConfigFile = "", as_json: AsJson = False
) -> None:
    """List every key of a job: its value here, its default, its type and what it means.

    Example: python launch.py config train --config tiny_cpu optim.lr_generator=1e-3
    """
    config_class = configs.find_job(job).Config
    file = submission.config_file(config) if config else None
    try:
        values = configs.flat(configs.load(config_class, file, overrides or ()))
    except configs.MissingKeysError:
        if file or overrides:
            raise
        values = {}
    keys = configs.keys(config_class)
    if as_json:
        say_json([_key_values(key, values) for key in keys])
        return
    screen = console()
    for part in key_table.shown(keys, values, screen.width):
        screen.print(part)


@app.command(name="init-dataset", rich_help_panel=START)
def init_dataset(
    images: Annotated[Path, typer.Argument(metavar="FOLDER", help="A rendered folder, or a packed dataset.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The YAML file to write.")] = Path(
        "dataset.yaml"
    ),
    packed: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where rendered images are to be packed; default: beside them."),
    ] = None,
) -> None:
    """Write a first configuration for images of your own, and say what is wrong with them.

    Looks at layout, cameras, sizes and alpha; sets what follows from them, with the reason beside each value.

    Example: python launch.py init-dataset data/images --out mine.yaml
    """
    from get3d_cluster.data.draft import draft, survey

    found = survey(images)
    data = images if found.is_packed else packed or images.parent / f"{images.name}-packed"
    if out.exists():
        raise UsageError(f"--out {out} exists already", "choose another file, or delete it")
    text = draft(found, images, data.resolve()).encode()
    say("\n".join(found.lines()))
    write_atomic(out, text)
    say(f"wrote {out}; look through it, then:")
    if not found.is_packed:
        say(f"  python launch.py run pack images={shlex.quote(str(images))} out={shlex.quote(str(data))}")
    say(f"  python launch.py submit train --config {shlex.quote(str(out))} --name {shlex.quote(out.stem)}")
    if found.troubles:
        raise UsageError(
            f"{len(found.troubles)} things are wrong with {images}, see above", "mend them before packing"
        )


@app.command(name="import-weights", rich_help_panel=START)
def import_weights(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Such as shapenet_car.pt; or .safetensors.")],
    overrides: Overrides = None,
    runs_dir: RunsDir = RUNS_DIR,
    name: Annotated[str, typer.Option("--name", "-n", metavar="NAME", help="Default: that of FILE.")] = "",
    config: Annotated[
        str,
        typer.Option(
            "--config",
            "-c",
            metavar="FILE",
            help="Sizes and data; default: the preset that FILE is called after.",
        ),
    ] = "",
    names: NamesFile = None,
    only_list: Annotated[
        bool,
        typer.Option("--list", help="Show every tensor, what it was matched with and why; import nothing."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    r"""Make a run of the weights that NVIDIA published (or that export-weights wrote).

    Each tensor of ours must find exactly one of theirs of equal shape, and each
    of theirs must be used or be a filter; else nothing is imported, and --list
    shows both sides. No code in FILE is run. The run is DONE and holds the
    networks alone: `run generate run=` takes it as it is, `submit train
    init_from=` goes on training from it.

    The published weights are CC BY-NC-SA 4.0 and not part of this project. No
    published file was at hand to try this on: docs/published_weights.md.

    Example: python launch.py import-weights shapenet_car.pt --list

    Example: python launch.py import-weights shapenet_car.pt && \
    python launch.py run generate run=runs/shapenet_car num_shapes=12
    """
    request = weights.request(file, runs_dir, name, config, overrides or ())
    if only_list or as_json:
        reading = weights.read(file, request, names).reading
        if as_json:
            say_json(reading.lines)
        else:
            console(UNBROKEN_COLUMNS).print(weights.line_table(reading.lines))
        reading.refuse_troubles()
        return
    weights.refuse_existing(request)
    for line in weights.keep(weights.read(file, request, names)):
        say(line)


@app.command(name="export-weights", rich_help_panel=LOOK)
def export_weights(
    run: Run,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="To write: .pt, or .safetensors.")],
    runs_dir: RunsDir = RUNS_DIR,
    step: Annotated[
        int | None, typer.Option(metavar="N", help="Step of the checkpoint; default: the newest.")
    ] = None,
    names: NamesFile = None,
) -> None:
    """Write G, G_ema and D of a checkpoint under the names of the published files.

    What import-weights reads back bit for bit. Refused for networks that the
    published ones cannot be, such as those with classes or FlexiCubes.

    Example: python launch.py export-weights car car.pt
    """
    for line in weights.export(runs.find_run(runs_dir, run), file, step, names):
        say(line)


@app.command(name="status", rich_help_panel=WATCH)
def show_status(
    run: MaybeRun = None,
    runs_dir: RunsDir = RUNS_DIR,
    watching: Annotated[
        bool,
        typer.Option(
            "--watch", "-w", help="Show it again every two seconds until all have ended; Ctrl-C ends it."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say how one run stands, or all: state, progress, attempts, last checkpoint, and why.

    LAST-CHECKPOINT is its age, and in brackets the steps that would be done
    again if the attempt died now. GOODPUT is the share of the time of all
    attempts that brought the run forward. UNKNOWN in WHY: the scheduler does
    not answer, and the state is the last one that the run's files tell.

    Example: python launch.py status car --watch
    """

    def find() -> list[RunFolder]:
        return [runs.find_run(runs_dir, run)] if run else runs.all_runs(runs_dir)

    found = find()
    if as_json:
        say_json([status.row_of(facts) for facts in Inquiry().look(found)])
    elif not found:
        say(f"no runs in {runs_dir}; start one with: python launch.py run train --config tiny_cpu")
    elif watching:
        watch(find)
    else:
        screen = console(UNBROKEN_COLUMNS)
        screen.print(status_table([status.row_of(facts) for facts in Inquiry().look(found)], screen.width))


@app.command(name="logs", rich_help_panel=WATCH)
def show_logs(
    run: Run,
    runs_dir: RunsDir = RUNS_DIR,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what is added, over attempts.")
    ] = False,
    attempt: Annotated[int | None, typer.Option(metavar="N", help="This attempt only.")] = None,
    rank: Annotated[int | None, typer.Option(metavar="R", help="This worker only.")] = None,
    stacks: Annotated[
        bool, typer.Option("--stacks", help="Where each worker stood when the newest hang was found.")
    ] = False,
) -> None:
    """Print the logs of all workers, stitched over all attempts.

    Each attempt has a heading that says how it ended; elements of a job array
    are attempts of their own. Where a worker wrote nothing, what SLURM itself
    wrote about the attempt follows.

    Example: python launch.py logs car -f --rank 0
    """
    found = runs.find_run(runs_dir, run)
    chosen = logs.Selection(attempt=attempt, rank=rank)
    if stacks:
        lines = logs.stacks(found, chosen)
    elif follow:
        lines = logs.followed(found, chosen, Ending(found))
    else:
        lines = logs.stitched(found, chosen)
    for line in lines:
        say(line)


@app.command(rich_help_panel=STOP)
def suspend(run: Run, runs_dir: RunsDir = RUNS_DIR, now: Now = False, wait: Wait = True) -> None:
    """Save a run and stop it; it stays away until you resume it. Returns when it has left.

    All workers finish their step and save once. On SLURM that may take a
    minute; what it waits for is shown, and Ctrl-C ends the waiting only.

    Example: python launch.py suspend car
    """
    stopping.stop(runs.find_run(runs_dir, run), Cause.SUSPENDED, now=now, wait=wait)


@app.command(rich_help_panel=STOP)
def resume(
    run: MaybeRun = None,
    runs_dir: RunsDir = RUNS_DIR,
    every: Annotated[
        bool, typer.Option("--all", help="All that are suspended or lost; not held, failed or cancelled.")
    ] = False,
    cause: Annotated[
        Cause | None,
        typer.Option(
            metavar="CAUSE",
            help="All that stand still because of this: preempted, node-failure, time-limit, requeued, crashed, hung, "
            "suspended, ... Not what was suspended or cancelled since.",
        ),
    ] = None,
    new_code: Annotated[
        bool,
        typer.Option("--new-code", help="Run the code as it is here from now on, not the copy in RUN/code."),
    ] = False,
) -> None:
    """Bring unfinished runs back, each at its last saved step.

    A run goes on with its own copy of the code, RUN/code, made when it was
    submitted. What you mended since is used with --new-code only; from then
    on the run counts as not bitwise that of before, and says so.

    How attempts ended that left no word, on a node that failed for example,
    is asked of the scheduler first and written down. A run still waits for
    those that it was submitted to come after. What is done, queued or running
    already is left alone.

    Example: python launch.py resume --all --cause preempted
    """
    if bool(run) == (every or cause is not None):
        raise UsageError("name one run, or give --all or --cause", "python launch.py resume RUN")
    if run:
        found = runs.find_run(runs_dir, run)
        submitted = submission.resume(found, is_new_code=new_code)
        _tell(found, submitted, runs_dir)
        if submitted.state == "continued" and found.code_dir.is_dir():
            say(f"  code    {_code_of(found, is_new=new_code)}")
        return
    if new_code:
        raise UsageError("--new-code is for one run at a time", "python launch.py resume RUN --new-code")
    stopping.resume_many(stopping.resumable(runs.all_runs(runs_dir), cause))


@app.command(rich_help_panel=STOP)
def cancel(run: Run, runs_dir: RunsDir = RUNS_DIR, now: Now = False, wait: Wait = True) -> None:
    """Stop a run for good. What it saved stays, and submit or resume would still continue it.

    Runs that come after it do not start: they wait until it is DONE.

    Example: python launch.py cancel car --now
    """
    stopping.stop(runs.find_run(runs_dir, run), Cause.CANCELLED, now=now, wait=wait)


@app.command(name="checkpoints", rich_help_panel=LOOK)
def show_checkpoints(
    run: Run,
    runs_dir: RunsDir = RUNS_DIR,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every byte and compare the digests.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the checkpoints of a run, in all its tiers. With --verify, exit with 6 if one is damaged.

    Example: python launch.py checkpoints car --verify
    """
    from get3d_cluster.cli.checkpoint_table import checkpoint_table, list_all, refuse_damage

    found = list_all(runs.find_run(runs_dir, run), verify=verify)
    if as_json:
        say_json(found)
    elif found:
        console().print(checkpoint_table(found, time.time()))
    else:
        say("no checkpoint yet")
    refuse_damage(found)


@app.command(rich_help_panel=LOOK)
def report(run: Run, runs_dir: RunsDir = RUNS_DIR) -> None:
    """Write a page with curves, samples, the timeline of attempts and the time lost; print its path.

    Example: python launch.py report car
    """
    from get3d_cluster.report.page import write_report

    say(str(write_report(runs.find_run(runs_dir, run).path)))


@app.command(name="simulate", rich_help_panel=CHECK)
def rehearse(
    job: Job,
    overrides: Overrides = None,
    config: ConfigFile = "",
    stops: Annotated[int, typer.Option(help="How often the second run is stopped.")] = 3,
    worlds: Annotated[str, typer.Option(help="Numbers of workers, one an attempt, over and over.")] = "1",
    kill_ratio: Annotated[float, typer.Option(help="Share of the stops that are kill -9.")] = 0.5,
    reference: Annotated[int, typer.Option(help="Workers of the run that nothing interrupts.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the moments and the signals.")] = 0,
    folder: Annotated[Path, typer.Option(help="Where both runs are made; emptied first.")] = SIMULATIONS_DIR,
    as_json: AsJson = False,
) -> None:
    """Prove that stops change nothing: run once through, run again with stops, compare the final state.

    Real workers and real signals on this machine, in every phase of an attempt: imports, loading, steps, previews,
    saves, leaving. Ends with 6 if a bit differs, or if a stop with a notice lost a step.

    Example: python launch.py simulate train --config tiny_cpu num_images=400 --stops 20 --worlds 4,2,3 --kill-ratio 0.5
    """
    from get3d_cluster.simulate import Plan, simulate
    from get3d_cluster.simulate.verdict import PHASE_HEADERS, STOP_HEADERS, phase_rows, stop_rows

    file = submission.config_file(config) if config else None
    settings = configs.anchored(configs.load(configs.find_job(job).Config, file, overrides or ()), Path.cwd())
    plan_of_stops = Plan(
        stops=stops, worlds=_worlds(worlds), kill_ratio=kill_ratio, seed=seed, reference=reference
    )
    verdict = simulate(job, settings, folder / job, plan_of_stops, (lambda _: None) if as_json else say)
    if as_json:
        say_json(verdict.summary() | dataclasses.asdict(verdict))
    else:
        for headers, rows in (
            (STOP_HEADERS, stop_rows(verdict.stops)),
            (PHASE_HEADERS, phase_rows(verdict.stops)),
        ):
            console().print(table(headers, rows))
            say()
        say("\n".join(verdict.lines()))
        say(f"took {duration(verdict.seconds)}")
    if not verdict.is_exact:
        raise DifferenceError(
            "the interrupted run ended with another state", f"compare the runs in {folder / job}"
        )
    if verdict.lost_after_notices:
        raise DifferenceError(
            f"{verdict.lost_after_notices} steps were lost after notices, although the bits are equal",
            f"look at the attempts in {folder / job}",
        )


@app.command(name="demo", rich_help_panel=START)
def show_demo(
    folder: Annotated[
        Path, typer.Option(help="Where everything is made; emptied first.")
    ] = DemoConfig.folder,
    num_images: Annotated[
        int, typer.Option("--images", help="Length of the training.")
    ] = DemoConfig.num_images,
    cars: Annotated[int, typer.Option(help="Models to learn from.")] = DemoConfig.cars,
    seed: Annotated[int, typer.Option(help="Of everything, and of the moment of the stop.")] = 0,
) -> None:
    """Go the whole way on this machine in about 15 minutes: models, Blender, training, a stop, meshes, report.

    Example: python launch.py demo
    """
    run_demo(DemoConfig(folder=folder, num_images=num_images, cars=cars, seed=seed), console())


@app.command(name="doctor", rich_help_panel=CHECK)
def show_doctor(
    runs_dir: RunsDir = RUNS_DIR,
    probe: Annotated[
        bool,
        typer.Option(
            "--probe", help="Start a task on two nodes of SLURM: runs folder, clocks, Python, GPUs there."
        ),
    ] = False,
    partition: Annotated[str, typer.Option(metavar="NAME", help="SLURM partition of those nodes.")] = "",
    as_json: AsJson = False,
) -> int:
    """Check this machine and its cluster; say what to do about what is missing.

    Python, packages, disk, GPU and Blender here. On a login node of SLURM, for
    each partition: what a preempted job gets, whether that suffices for the
    longest save of the runs here, and what to ask the administrator for.

    Example: python launch.py doctor --probe
    """
    found = doctor.checks(runs_dir, is_probed=probe, partition=partition)
    if as_json:
        say_json(found)
    else:
        screen = console()
        for part in checks.shown(found):
            screen.print(part)
    return 2 if any(check.state == "fail" for check in found) else 0


def _requests(context: typer.Context, *first: Any) -> list[submission.Request]:
    """Return what was typed for each link of a chain, the ``first`` of which comes as the parameters of the verb."""
    names = ("job", "overrides", "runs_dir", "name", "config", "cluster", "after", "allow_config_change")
    return [_request(*first), *(_request(*(link[name] for name in names)) for link in chain.further(context))]


def _request(
    job: str,
    overrides: list[str] | None,
    runs_dir: Path,
    name: str,
    file: str,
    cluster: str,
    after: list[str] | None,
    allow_config_change: bool,
) -> submission.Request:
    return submission.Request(
        job=job,
        runs_dir=Path(runs_dir),
        name=name,
        file=file,
        cluster=cluster,
        after=after or (),
        allow_config_change=allow_config_change,
        overrides=overrides or (),
    )


def _plan_of(prepared: submission.Prepared) -> dict[str, Any]:
    return {
        "run": str(prepared.run.path),
        "does": "continue" if prepared.exists else "create",
        "job": prepared.job_name,
        "scheduler": prepared.cluster,
        "after": [str(parent.path) for parent in prepared.after],
        "resources": configs.plain(prepared.resources),
        "changed": prepared.changed,
        "plan": prepared.scheduler.plan(prepared.run, prepared.resources, prepared.after),
    }


def _tell(run: RunFolder, submitted: submission.Submitted, runs_dir: Path) -> None:
    """Say what became of a submission and what can be typed next."""
    where = _where(runs_dir)
    say(f"{_became(run, submitted, runs_dir)}{f': {submitted.why}' if submitted.why else ''}")
    if submitted.state != "done":
        say(f"  folder  {run.path}")
        say(f"  watch   python launch.py status {run.name} --watch{where}")
        say(f"  logs    python launch.py logs {run.name} -f{where}")
        say(f"  stop    python launch.py suspend {run.name}{where}")


def _code_of(run: RunFolder, *, is_new: bool) -> str:
    commit = run.identity()["commit"][:10]
    of = f" of commit {commit}" if commit else ""
    if is_new:
        return f"as it is here now{of}; that of before is in {run.path / 'old-code'}"
    return f"its own copy{of}, {run.code_dir}; to run what is here now: suspend it, then resume --new-code"


def _became(run: RunFolder, submitted: submission.Submitted, runs_dir: Path) -> str:
    as_job = f" as {submitted.job}" if submitted.job else ""
    parents = [RunFolder(Path(path)) for path in run.spec().after]
    missing = ", ".join(parent.name for parent in parents if not parent.is_done())
    waits = f", after {missing}" if missing else ""
    return {
        "done": f"{run.name} is done already; see: python launch.py report {run.name}{_where(runs_dir)}",
        "pending": f"{run.name} is queued already{as_job}{waits}",
        "running": f"{run.name} is running already{as_job}",
        "queued": f"{run.name} is queued{as_job}{waits}",
        "continued": f"{run.name} continues at step {run.saved_step()}, queued{as_job}{waits}",
    }[submitted.state]


def _where(runs_dir: Path) -> str:
    return "" if runs_dir == RUNS_DIR else f" --runs {runs_dir}"


def _key_values(key: configs.Key, values: dict[str, Any]) -> dict[str, Any]:
    return {
        "key": key.path,
        "value": values.get(key.path),
        "default": None if key.is_required else key.default,
        "required": key.is_required,
        "type": key.type_text,
        "changeable": key.changeable,
        "meaning": key.meaning,
    }


def _worlds(text: str) -> tuple[int, ...]:
    try:
        found = tuple(int(word) for word in text.split(","))
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise UsageError(f"--worlds={text} must be numbers of workers", "for example --worlds 2,1,4")
    return found
