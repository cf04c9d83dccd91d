"""The command line: `nern COMMAND`; COMMANDS lists them."""

from __future__ import annotations

import dataclasses
import json
import shlex
import signal
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Any, TypeVar

from jsonargparse import ActionConfigFile, ArgumentParser  # type: ignore[attr-defined]
from rich.console import Console

import nern
from nern.artifact import load
from nern.benchmarks import KINDS, OPTIONS, OWN_OPTIONS, BenchSettings, bench, check_kind
from nern.catalog import SECTIONS, SOURCES, names_of, networks_and_tasks, parameter_table, totals
from nern.command_line import PLAIN, command_parser, json_option, option_names
from nern.config import (
    Config,
    OriginalConfig,
    Settings,
    check_key,
    from_namespace,
    import_modules,
    item_class,
    known_keys,
    read_config_file,
)
from nern.devices import processes_to_start
from nern.errors import NernError, NernWarning, unknown_name
from nern.file_commands import (
    info_parser,
    pack_parser,
    run_info,
    run_pack,
    run_unpack,
    run_verify,
    unpack_parser,
    verify_parser,
)
from nern.files import check_writable, write_json
from nern.jobs import config_of_run, evaluate, resume, resume_original, train, train_original
from nern.jobs.packing import PackOptions, pack
from nern.jobs.reporting import report
from nern.originals import build_original
from nern.processes import check_alone, launched, process_number, restart
from nern.report_command import report_parser, run_report
from nern.shipped import shipped_nerns
from nern.sweep import SweepFolder, make_page, sweep
from nern.terminal import bytes_text
from nern.training.interrupt import Interrupted
from nern.training.run_folder import RunFolder

TRAIN_HELP = """Train a NeRN: represent the convolution kernels of a pretrained network by a small predictor.

Settings come from a YAML file (--config_path) and from dotted options, which win over the file wherever they stand:

  nern train --config_path FILE --nern.hidden_layer_size 180 --epochs 400

The run is written to logging.log_dir/logging.exp_name: resolved config, checkpoints, results, picture, TensorBoard
events. A run that was stopped goes on with --resume.

Several GPUs: num_gpus; or torchrun --nproc-per-node 2 -m nern train ..., or accelerate launch (docs/several-devices.md)."""

EVALUATE_HELP = """Evaluate a NeRN on the test images, beside its original network.

  nern evaluate --run RUN_FOLDER                     the best checkpoint of a run
  nern evaluate --config_path FILE                   a config with nern.init: checkpoint and nern.checkpoint_path
  nern evaluate --config_path FILE --original true   the original network alone"""

ORIGINAL_HELP = """Train a network on a task from scratch, to be represented later; with a factor under `smoothness`
neighbouring kernels are made alike.

  nern train-original --config_path FILE --epochs 60

The run folder ends up with network.safetensors, network.json (arguments) and network.md (card). A run that was stopped
goes on with --resume."""

INSPECT_HELP = """Show what of a network a NeRN represents: each parameter, its kernels, taken or kept.

  nern inspect ResNet20
  nern inspect timm:vit_tiny_patch16_224 --include '*.weight' --exclude 'head.*'"""

LIST_HELP = """List what there is: networks and tasks as a table, or the names of one kind.

  nern list
  nern list timm"""

QUICKSTART_HELP = """Turn a small pretrained network into a NeRN and back, with nothing to download: half a minute on two
CPU cores. Trains on scikit-learn's digits and ends with a table of accuracies and sizes."""

BENCH_HELP = """Measure speed and memory on this machine: medians and quartiles, each after a warm-up.

{kinds}

  nern bench step --config_path FILE --precisions float32 bf16
  nern bench scaling --largest 1e7 --figure scaling.png

Settings come from a YAML file and dotted options, as for `nern train`; without a file from that of the quickstart (scaling:
nern.fit's, hidden layers of 128). Orderings are solved anew; what is compared is measured by turns."""

SWEEP_HELP = """Train the runs of a sweep file side by side, and compare them: one table (results.csv) and one picture
(results.png) in the sweep's folder. Finished runs are not repeated; after Ctrl-C or a crash the same command goes on.

  nern sweep experiments/sweeps/digits.yaml --jobs 2
  nern sweep FILE --task.data_dir DIR                dotted options win over the file, in all runs
  nern sweep docs/results.csv --report PAGE.md       a page and a picture of tables, nothing is trained

docs/sweeps.md describes the file."""


def _config_options(parser: ArgumentParser, cls: type[Settings] = Config) -> None:
    parser.add_argument(
        "--config_path",
        action=ActionConfigFile,
        metavar="FILE",
        help="YAML file; may be given several times, later ones win",
    )
    parser.add_class_arguments(cls)
    parser.settings_class = cls  # type: ignore[attr-defined]


def _job_parser(command: str, text: str, cls: type[Settings]) -> ArgumentParser:
    """Of a command that trains what a config of `cls` describes, or goes on with it."""
    usage = (
        f"nern {command} --config_path FILE [--dotted.key VALUE ...] [--json FILE]\n"
        f"       nern {command} --resume RUN_FOLDER"
    )
    parser = command_parser(text, usage)
    parser.add_argument(
        "--resume", type=str, default=None, metavar="RUN_FOLDER", help="continue a stopped run; takes no other settings"
    )
    json_option(parser)
    _config_options(parser, cls)
    return parser


def _train_parser() -> ArgumentParser:
    return _job_parser("train", TRAIN_HELP, Config)


def _original_parser() -> ArgumentParser:
    return _job_parser("train-original", ORIGINAL_HELP, OriginalConfig)


def _evaluate_parser() -> ArgumentParser:
    usage = (
        "nern evaluate --run RUN_FOLDER [--checkpoint NAME] [--json FILE]\n"
        "       nern evaluate --config_path FILE [--dotted.key VALUE ...] [--original true] [--json FILE]"
    )
    parser = command_parser(EVALUATE_HELP, usage)
    parser.add_argument("--run", type=str, default=None, metavar="RUN_FOLDER", help="evaluate a checkpoint of this run")
    parser.add_argument(
        "--checkpoint",
        type=str | None,
        default=None,
        metavar="NAME",
        help="with --run: 'best' (unless set), 'last', 'step_N', or of a run by phases 'reconstruction', 'distillation'",
    )
    parser.add_argument("--original", type=bool, default=False, help="evaluate the original network itself")
    json_option(parser)
    _config_options(parser)
    return parser


def _inspect_parser() -> ArgumentParser:
    usage = "nern inspect NETWORK [--include GLOB ...] [--exclude GLOB ...] [--weights FILE] [--vectors true]"
    parser = command_parser(INSPECT_HELP, usage)
    parser.add_argument("network", type=str, help="as task.original_model_name")
    parser.add_argument("--include", type=str, nargs="+", default=None, metavar="GLOB", help="as nern.include")
    parser.add_argument("--exclude", type=str, nargs="+", default=[], metavar="GLOB", help="as nern.exclude")
    parser.add_argument("--weights", type=str | None, default=None, help="as original_model_path; null: random ones")
    parser.add_argument("--kwargs", type=dict[str, Any], default={}, help="as task.original_model_kwargs")
    parser.add_argument("--vectors", type=bool, default=False, help="list biases and other vectors, too")
    parser.add_argument("--imports", type=str, nargs="+", default=[], help="modules of yours to import first")
    return parser


def _list_parser() -> ArgumentParser:
    usage = f"nern list [{' | '.join([*SECTIONS, *SOURCES, 'pretrained'])}]"
    parser = command_parser(LIST_HELP, usage)
    parser.add_argument("what", type=str, nargs="?", default=None, help="names of one kind only, one a line")
    parser.add_argument("--imports", type=str, nargs="+", default=[], help="modules of yours to import first")
    return parser


def _quickstart_parser() -> ArgumentParser:
    parser = command_parser(QUICKSTART_HELP)
    parser.add_argument("--log_dir", type=str, default="outputs", help="folder in which the run folder is made")
    parser.add_argument("--seed", type=int, default=0, help="seed of the run")
    json_option(parser)
    return parser


def _bench_parser() -> ArgumentParser:
    usage = (
        f"nern bench {{{' | '.join(KINDS)}}} [--repeats N] [--warmup N] [--threads N] [--json FILE] [--markdown FILE]\n"
        "       [options of its own] [--config_path FILE] [--dotted.key VALUE ...]"
    )
    text = BENCH_HELP.format(kinds="\n".join(f"  {name:<12} {about}" for name, about in KINDS.items()))
    parser = command_parser(text, usage)
    parser.add_argument("what", type=str, nargs="?", default=None, help="the benchmark")
    for name, (kind, metavar, about) in OPTIONS.items():
        own = f"{OWN_OPTIONS[name]}: " if name in OWN_OPTIONS else ""
        more: dict[str, Any] = {"nargs": "+"} if name == "precisions" else {}
        parser.add_argument(f"--{name}", type=kind, default=None, metavar=metavar, help=own + about, **more)
    json_option(parser)
    parser.add_argument("--markdown", type=str, default=None, metavar="FILE", help="also write the tables here")
    _config_options(parser)
    parser.default_file = _bench_file  # type: ignore[attr-defined]
    return parser


def _sweep_parser() -> ArgumentParser:
    usage = (
        "nern sweep FILE [--out FOLDER] [--jobs N] [--report PAGE] [--json FILE] [--dotted.key VALUE ...]\n"
        "       nern sweep TABLE ... --report PAGE"
    )
    parser = command_parser(SWEEP_HELP, usage)
    parser.add_argument("files", type=str, nargs="+", metavar="FILE", help="a sweep file; or tables (.csv) of sweeps")
    parser.add_argument(
        "--out",
        type=str | None,
        default=None,
        metavar="FOLDER",
        help="folder of the sweep; null: outputs/NAME of the file",
    )
    parser.add_argument(
        "--jobs", type=int | None, default=None, metavar="N", help="runs at a time; null: one a GPU, or one on the CPU"
    )
    parser.add_argument(
        "--report",
        type=str | None,
        default=None,
        metavar="PAGE",
        help="write a page of the results (Markdown) here, and the picture of the same name beside it",
    )
    json_option(parser)
    parser.add_class_arguments(Config)
    parser.settings_class = Config  # type: ignore[attr-defined]
    return parser


def _bench_file(argv: Sequence[str]) -> str:
    return _own_config("scaling" if "scaling" in argv else "quickstart")


def _own_config(name: str) -> str:
    """Path of a config that ships with the package."""
    return str(resources.files("nern") / "configs" / f"{name}.yaml")


S = TypeVar("S", bound=Settings)


def _config(given: dict[str, Any], cls: type[S]) -> S:
    names = {name for name in known_keys(cls) if "." not in name}
    return from_namespace({name: value for name, value in given.items() if name in names}, cls)


def _resumes(given: dict[str, Any], argv: Sequence[str]) -> bool:
    rest = [a for a in option_names(argv) if a not in ("resume", "json")]
    if given["resume"] is not None and rest:
        raise NernError(f"--resume continues a run with its own settings; drop --{', --'.join(rest)}")
    return given["resume"] is not None


def _run_original(given: dict[str, Any], argv: Sequence[str], console: Console) -> None:
    if _resumes(given, argv):
        resume_original(given["resume"], console, given["json"])
        return
    config = _config(given, OriginalConfig)
    console.print(config.to_yaml(), style="dim", **PLAIN)
    train_original(config, console, given["json"])


def _run_train(given: dict[str, Any], argv: Sequence[str], console: Console) -> None:
    resumes = _resumes(given, argv)
    config = Config.load(RunFolder.open(given["resume"]).config) if resumes else _config(given, Config)
    count = processes_to_start(config)
    if count > 1 and given["may_restart"] and not launched():
        config.check()
        restart(count, ["train", *given["typed"]])
    if resumes:
        resume(given["resume"], console, given["json"])
        return
    if process_number() == 0:
        console.print(config.to_yaml(), style="dim", **PLAIN)
    train(config, console, given["json"])


def _run_evaluate(given: dict[str, Any], argv: Sequence[str], console: Console) -> None:
    check_alone("nern evaluate")
    if given["run"] is None:
        if given["checkpoint"] is not None:
            raise NernError("--checkpoint names a checkpoint of --run; without a run, set nern.checkpoint_path")
        evaluate(_config(given, Config), given["original"], given["json"], console)
        return
    rest = [a for a in option_names(argv) if a not in ("run", "checkpoint", "original", "json")]
    if rest:
        raise NernError(f"--run takes its settings from the run folder; drop --{', --'.join(rest)}")
    config = config_of_run(given["run"], given["checkpoint"] or "best")
    evaluate(config, given["original"], given["json"], console, given["run"])


def _run_inspect(given: dict[str, Any], argv: Sequence[str], console: Console) -> None:
    import_modules(given["imports"])
    with warnings.catch_warnings():
        if given["weights"] is None:
            warnings.filterwarnings("ignore", "original_model_path is not set", NernWarning)
        original = build_original(
            given["network"], given["weights"], given["kwargs"], include=given["include"], exclude=given["exclude"]
        )
    table = parameter_table(given["network"], original, given["vectors"])
    widest = console.measure(table, options=console.options.update_width(10_000)).maximum
    console.width = max(console.width, widest)  # names stay whole in a narrow terminal
    console.print(table)
    console.print(totals(original), highlight=False, soft_wrap=True)


def _run_list(given: dict[str, Any], argv: Sequence[str], console: Console) -> None:
    import_modules(given["imports"])
    text = networks_and_tasks() if given["what"] is None else "\n".join(names_of(given["what"]))
    console.print(text, **PLAIN)


def _run_quickstart(given: dict[str, Any], argv: Sequence[str], console: Console) -> None:
    config = Config.load(_own_config("quickstart"))
    config.logging.log_dir, config.seed = given["log_dir"], given["seed"]
    metrics = train(config, console, given["json"])
    run = metrics["run_folder"]
    artifact = pack(run, options=PackOptions(evaluate=True), console=Console(quiet=True))
    page = report(run, console=Console(quiet=True))
    top1, whole = artifact.description.networks[0].about["test"]["top1"], metrics["sizes"]["original_bytes"]
    console.print(
        f"one file: {run}.nern ({bytes_text(artifact.size)} in place of {bytes_text(whole)}, {top1:.2f} %; see nern info)\n"
        f"page: {page}\n"
        f"picture: {run}/curves.png\n"
        f"again, from the files: nern evaluate --run {run}\n"
        f"over time: tensorboard --logdir {config.logging.log_dir}",
        highlight=False,
        soft_wrap=True,
    )
    for name in shipped_nerns():
        console.print(_shipped(name), **PLAIN)


def _shipped(name: str) -> str:
    """A NeRN that ships with nern, loaded and built into its network, in a line."""
    start = time.perf_counter()
    artifact = load(name)
    network = artifact.network()
    seconds, about = time.perf_counter() - start, artifact.description.networks[0].about
    whole = sum(tensor.nbytes for tensor in network.state_dict().values())
    return (
        f'ships with nern: nern.load("{name}").network() ({bytes_text(artifact.size)} in place of {bytes_text(whole)}, '
        f"{about['test']['top1']:.2f} % of {about['test']['images']:,} images of {about['task']}; took {seconds:.1f} s)"
    )


def _run_bench(given: dict[str, Any], argv: Sequence[str], console: Console) -> None:
    what = check_kind(given["what"], [name for name in option_names(argv) if name in OPTIONS])
    chosen = {name: given[name] for name in OPTIONS if given[name] is not None}
    command = shlex.join(["nern", "bench", *given["typed"]])
    bench(
        what,
        _config(given, Config),
        BenchSettings(**chosen),
        console,
        given["json"],
        given["markdown"],
        command,
    )


def _run_sweep(given: dict[str, Any], argv: Sequence[str], console: Console) -> None:
    check_alone("nern sweep")
    files, tables = given["files"], [file for file in given["files"] if file.endswith(".csv")]
    options = {name: _given(given, name) for name in option_names(argv) if name not in _SWEEP_OPTIONS}
    if tables:
        extra = [name for name in option_names(argv) if name != "report"]
        if len(tables) < len(files) or extra or given["report"] is None:
            raise NernError("tables (.csv) are made into a page, and nothing else: nern sweep TABLE ... --report PAGE")
        make_page(tables, given["report"])
        console.print(f"page: {given['report']}", **PLAIN)
        return
    if len(files) > 1:
        raise NernError(f"one sweep at a time, not {len(files)}: {', '.join(files)}")
    check_writable(given["report"], "--report")
    check_writable(given["json"], "--json")
    rows = sweep(files[0], given["out"], given["jobs"], options, console)
    if given["json"] is not None:
        write_json(given["json"], rows)
    if given["report"] is not None:
        make_page([SweepFolder.of(files[0], given["out"]).table], given["report"])
        console.print(f"page: {given['report']}", **PLAIN)


_SWEEP_OPTIONS = ("out", "jobs", "report", "json")


def _given(values: Any, key: str) -> Any:
    """What was given for a dotted key."""
    cls = known_keys(Config).get(key)
    if key.endswith("+") or dataclasses.is_dataclass(cls) or item_class(cls):
        raise NernError(f"--{key}: nern sweep takes single keys, whole; write this one into the file, under settings")
    for part in key.split("."):
        values = values[part]
    return list(values) if isinstance(values, tuple) else values


Command = tuple[Callable[[], ArgumentParser], Callable[[dict[str, Any], Sequence[str], Console], None], str]
COMMANDS: dict[str, Command] = {
    "train": (_train_parser, _run_train, "train a NeRN"),
    "train-original": (_original_parser, _run_original, "train a network to be represented"),
    "evaluate": (_evaluate_parser, _run_evaluate, "evaluate a NeRN, or the original network"),
    "pack": (pack_parser, run_pack, "write a NeRN into one small file"),
    "unpack": (unpack_parser, run_unpack, "write the weights that such a file gives"),
    "info": (info_parser, run_info, "show what is in such a file"),
    "verify": (verify_parser, run_verify, "check such a file"),
    "report": (report_parser, run_report, "write a page with figures about a run or a file"),
    "inspect": (_inspect_parser, _run_inspect, "show what of a network is represented"),
    "list": (_list_parser, _run_list, "list networks, tasks and other choices"),
    "sweep": (_sweep_parser, _run_sweep, "train many NeRNs side by side, and compare them"),
    "bench": (_bench_parser, _run_bench, "measure speed and memory on this machine"),
    "quickstart": (_quickstart_parser, _run_quickstart, "the whole job on a small network, nothing to download"),
}


def _config_first(argv: Sequence[str], cls: type[Settings]) -> list[str]:
    """Move --config_path to the front, so that dotted options win over the file wherever they stand. Files are read here,
    with the reader of `Config.load`; jsonargparse gets their content. One without keys is left out."""
    files: list[dict[str, Any]] = []
    rest, arguments = [], list(argv)
    while arguments:
        argument = arguments.pop(0)
        name, equals, path = argument.partition("=")
        if name != "--config_path" or not (equals or arguments):
            rest.append(argument)
            continue
        path = path if equals else arguments.pop(0)
        if values := read_config_file(path, cls):
            files.append(values)
    given: dict[str, Any] = {name: value for values in files for name, value in values.items()}
    layers = [cls.beneath(given | _typed(rest, "recipe")), *files]
    return [argument for values in layers if values for argument in ("--config_path", json.dumps(values))] + rest


def _typed(argv: Sequence[str], name: str) -> dict[str, str]:
    """The value typed for option `name`, if it was."""
    following = [*argv[1:], ""]
    pairs = [(a.partition("="), b) for a, b in zip(argv, following[: len(argv)], strict=True)]
    values = [value if equals else after for (option, equals, value), after in pairs if option == f"--{name}"]
    return {name: values[-1]} if values else {}


def known_options(parser: ArgumentParser) -> set[str]:
    """Names of a parser's options, without dashes."""
    return {option.lstrip("-") for action in parser._actions for option in action.option_strings}


def _check_options(parser: ArgumentParser, argv: Sequence[str]) -> None:
    """Name unknown keys and their nearest before jsonargparse sees them."""
    own, cls = known_options(parser), getattr(parser, "settings_class", None)
    if cls is None:
        return
    for name in option_names(argv):
        if name not in own and "." not in name and name not in known_keys(cls):
            choices = {option for option in own if "." not in option and not option.endswith("+") and len(option) > 1}
            raise unknown_name("option", name, choices)
        section = name.partition(".")[0]
        if section != name and section in known_keys(cls) and item_class(known_keys(cls)[section]):
            raise NernError(
                f"{section} is a list of sections, to be written in a file; --{name} does not say which is meant"
            )
        if name not in own:
            check_key(name.rstrip("+"), cls)


def _usage() -> str:
    lines = [f"  nern {name:<15} {text}" for name, (_, _, text) in COMMANDS.items()]
    return (
        f"nern {nern.__version__}: neural representations of neural networks\n\n"
        + "\n".join(lines)
        + "\n\n`nern COMMAND --help` explains a command."
    )


def main(argv: Sequence[str] | None = None, may_restart: bool = False) -> int:
    """Run a command; returns the exit status: 0, 2 for what a user can mend, 128 + signal when stopped.

    Args:
        argv: the command's name and options; None: this process's own.
        may_restart: whether this process is the command's own, and may become several where `num_gpus` asks for them.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0
    if arguments[0] == "--version":
        print(nern.__version__)
        return 0
    errors = Console(stderr=True)
    with warnings.catch_warnings():
        warnings.simplefilter("always", NernWarning)
        number = process_number()  # of several, the first one talks; others only of what is their own
        warnings.showwarning = lambda message, *_, **__: (
            errors.print(f"warning: {message}", style="yellow", **PLAIN) if number == 0 else None
        )
        try:
            _dispatch(arguments[0], arguments[1:], may_restart or argv is None)
        except Interrupted as error:
            if number == 0:
                errors.print(str(error), style="yellow", **PLAIN)
            return 128 + error.signal_number
        except NernError as error:
            errors.print(f"{f'process {number}: ' * (number > 0)}error: {error}", style="red", **PLAIN)
            return 2
        except KeyboardInterrupt:
            errors.print("stopped; nothing since the last save was kept", style="yellow", **PLAIN)
            return 128 + signal.SIGINT
    return 0


def _dispatch(name: str, rest: Sequence[str], may_restart: bool) -> None:
    if name not in COMMANDS:
        raise unknown_name("command", name, COMMANDS)
    typed = list(rest)
    build, run, _ = COMMANDS[name]
    parser = build()
    parser.prog = f"nern {name}"
    parser.exit_on_error = False
    _check_options(parser, rest)
    cls = getattr(parser, "settings_class", None)
    if hasattr(parser, "default_file") and "config_path" not in option_names(rest):
        rest = [*rest, "--config_path", parser.default_file(rest)]
    rest = _config_first(rest, cls) if cls is not None and "config_path" in known_options(parser) else list(rest)
    try:
        given = parser.parse_args(rest, env=False).as_dict()
    except Exception as error:  # jsonargparse's ArgumentError: key, expected type, value
        raise NernError(f"{' '.join(str(error).split())} (see nern {name} --help)") from error
    run(given | {"typed": typed, "may_restart": may_restart}, rest, Console())


if __name__ == "__main__":
    sys.exit(main())
