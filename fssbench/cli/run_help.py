"""`--help` of fit, test, validate and predict: one screen without any heavy import; `--help all` has Lightning's options."""

from __future__ import annotations

import textwrap
from importlib.metadata import entry_points

from fssbench.cli.configs import find_config, read_config
from fssbench.errors import UserError

RUN_OPTIONS = {
    "name NAME": "method name on the board and in run_dir",
    "run_dir FOLDER": "default: runs/NAME/DATA/foldF, then _shotK where K is not 1 and _seedS where S is not 0",
    "results FOLDER": "results folder of `test` (default: results)",
    "overwrite HOW": "what exists is kept (only-missing, the default), made again (always) or an error (never)",
    "feature_cache MIB": "memory for frozen features (default: 1024); 0 = off",
    "feature_disk GIB": "disk for frozen features that later runs use again (default: 0, off)",
    "feature_dtype TYPE": "type of the features on disk: float32 (the default), float16 or bfloat16",
    "compile_encoder MODE": "torch.compile for the frozen encoder: no (the default), default, max-autotune, or "
    "reduce-overhead, which makes CUDA graphs",
}
"""fssbench's own options of a run, with their values -> what they do."""

GRID_OPTIONS = {
    "folds all|F [F ...]": "the folds to run; {fold} in any value becomes the fold",
    "shots K [K ...]": "the numbers of supports; {shot} in any value becomes K",
    "seeds S [S ...]": "the seeds of the run; {seed} becomes S",
    "methods CONFIG [CONFIG ...]": "several methods; {method} becomes the config's name",
    "suite FILE": "methods and axes from a small YAML file (docs/board.md)",
    "jobs N": "runs at a time (default: 1); where there are several GPUs, each on one of them",
    "launcher local|slurm": "on this machine (the default), or as jobs of a Slurm cluster",
    "slurm KEY=VALUE ...": "with --launcher slurm: submitit's parameters, such as timeout_min=240",
}
"""Options of several runs, with their values -> what they do."""

CHECKPOINT = {
    "fit": "go on from this checkpoint (an interrupted fit goes on by itself)",
    "test": "trained weights, made by `fssbench fit`; {fold} becomes the fold",
    "validate": "trained weights, made by `fssbench fit`",
    "predict": "trained weights, made by `fssbench fit`",
}
EXAMPLES = {
    "fit": "fssbench fit --config methods/comp.yaml --config data/coco20i.yaml --folds all",
    "test": "fssbench test --config methods/prototype.yaml --config data/coco20i.yaml --folds all --shots 1 5",
    "validate": "fssbench validate --config methods/comp.yaml --config data/coco20i.yaml --ckpt_path FILE",
    "predict": "fssbench predict --config methods/prototype.yaml --config data/folder.yaml --data.root FOLDER",
}

PAGE = """usage: fssbench {verb} --config methods/NAME.yaml --config data/NAME.yaml [options]

{what}
Options override configs, later configs override earlier ones.

what is run:
{what_is_run}

where the run goes:
{run}

several runs, one process each:
{grid}

`fssbench list` names the configs. `fssbench {verb} --help all` lists every option, also Lightning's.

example:
  {example}"""


def short_help(verb: str, what: str) -> str:
    """The page for a verb; `what` is its line in `fssbench --help`."""
    configured = {
        "-c, --config NAME": "a file, or a name from `fssbench list`; may be given several times",
        "--ckpt_path FILE": CHECKPOINT[verb],
        "--model.KEY VALUE": "a setting of the method; --model.help lists those of the configured one, "
        "--model.help FSDINO those of a class",
        "--data.KEY VALUE": "a setting of the data (fold, shot, root, protocol, batch_size, num_workers, "
        "episodes_per_class, ...); --data.help lists all",
        "--trainer.KEY VALUE": "a setting of Lightning's Trainer (max_epochs, devices, accelerator, precision, "
        "limit_train_batches, ...)",
        "--seed_everything S": "seed of the run (default: 0)",
        "--print_config": "print the whole configuration and stop",
    }
    return PAGE.format(
        verb=verb,
        what=f"{what[0].upper()}{what[1:]}.",
        what_is_run=_columns(configured),
        run=_columns({f"--{option}": text for option, text in RUN_OPTIONS.items()}),
        grid=_columns({f"--{option}": text for option, text in GRID_OPTIONS.items()}),
        example=EXAMPLES[verb],
    )


def run_option_texts() -> dict[str, str]:
    """fssbench's own options of a run, by name."""
    return {option.partition(" ")[0]: text for option, text in RUN_OPTIONS.items()}


def grid_text() -> str:
    """The options of several runs as one paragraph, for the page of all options."""
    return " ".join(f"--{option}: {text}." for option, text in GRID_OPTIONS.items())


def _columns(rows: dict[str, str], width: int = 30) -> str:
    """Option and text in two columns, at most 120 wide."""
    lines = []
    for option, text in rows.items():
        first, *others = textwrap.wrap(text, 116 - width)
        lines += [f"  {option:<{width}}{first}", *(" " * (width + 2) + line for line in others)]
    return "\n".join(lines)


def asks_for_help(arguments: list[str]) -> str | None:
    """`short` for `--help`, `all` for `--help all`, None where no help is wanted."""
    for position, word in enumerate(arguments):
        if word in ("-h", "--help"):
            return "all" if arguments[position + 1 : position + 2] == ["all"] else "short"
    return None


def with_configured_class(arguments: list[str], configs: list[str]) -> list[str]:
    """Arguments in which `--model.help` or `--data.help` names a class, the configured one where none is given. It is then
    the only argument, as the parser wants it.

    Raises `UserError` where no class is given or configured.
    """
    for position, word in enumerate(arguments):
        if word in ("--model.help", "--data.help"):
            given = [name for name in arguments[position + 1 : position + 2] if not name.startswith("-")]
            return [word, *(given or [_configured_class(word.strip("-").partition(".")[0], configs)])]
    return arguments


def _configured_class(key: str, configs: list[str]) -> str:
    for name in reversed(configs):
        value = read_config(find_config(name)).get(key)
        value = value.get("class_path") if isinstance(value, dict) else value
        if isinstance(value, str):
            return value
    raise UserError(f"--{key}.help needs a class or a config: --{key}.help {_known(key)}, or --config NAME before it.")


def _known(key: str) -> str:
    """The classes that can be named, as `A|B|C`."""
    import datamodules
    import methods

    names = list({"model": methods, "data": datamodules}[key].__all__)
    if key == "model":
        names += [point.value.rpartition(":")[2] for point in entry_points(group="fssbench.methods")]
    return "|".join(sorted(set(names)))
