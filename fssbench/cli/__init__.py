"""The console script: one light dispatcher. Heavy imports happen only in the verbs that need them."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from fssbench import __version__
from fssbench.cli.configs import told
from fssbench.errors import UserError, nearest

# verb -> (module with `run(verb, arguments) -> int`, one line for --help)
VERBS: dict[str, tuple[str, str]] = {
    "demo": ("fssbench.cli.demo", "fit, test and board on the embedded example, nothing to download"),
    "fit": ("fssbench.cli.grid", "train a method on the base classes of one or all folds"),
    "test": ("fssbench.cli.grid", "score a method on the novel classes; writes one record per run"),
    "validate": ("fssbench.cli.grid", "score a checkpoint on base-class episodes"),
    "predict": ("fssbench.cli.grid", "write the predicted masks of the test episodes"),
    "segment": ("fssbench.cli.segment", "masks for your own images from a few examples, no data set needed"),
    "leaderboard": ("fssbench.cli.leaderboard", "table of all records in a results folder"),
    "compare": ("fssbench.cli.compare", "two methods on the same episodes: paired differences with intervals"),
    "explain": ("fssbench.cli.explain", "how a number came about: data, episodes, weights, code, command"),
    "replay": ("fssbench.cli.explain", "run a record again and say whether the counts are identical"),
    "score": ("fssbench.cli.score", "masks made by any other program become a record"),
    "list": ("fssbench.cli.listing", "methods, datasets and configs that can be named"),
    "cache": ("fssbench.cli.cache", "features kept on disk between runs: show, verify, clear"),
    "prepare": ("fssbench.cli.prepare", "unpack, convert and check a data set; writes a signed-off prepared.json"),
    "episodes": ("fssbench.cli.episodes", "build, freeze, verify, show or export episode manifests"),
    "doctor": ("fssbench.cli.doctor", "versions, devices, weights, data: what is ready and what to do next"),
}

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)

USAGE = """usage: fssbench VERB [options]

Few-shot semantic segmentation: train, test and compare methods on exactly the same episodes.

{verbs}

  fssbench VERB --help                   options of a verb
  fssbench test --model.help FSDINO      settings of a method; --data.help COCO20i of a data set
  fssbench --version

start here:
  fssbench demo
  fssbench test --config methods/prototype.yaml --config data/folder.yaml --data.root FOLDER   # your own images and masks
  fssbench fit  --config methods/comp.yaml --config data/coco20i.yaml --folds all
  fssbench test --config methods/comp.yaml --config data/coco20i.yaml --folds all --shots 1 5 \\
                --ckpt_path 'runs/comp/coco20i/fold{{fold}}/last.ckpt'
  fssbench leaderboard"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 done, 1 a run failed, 2 wrong input, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        verbs = "\n".join(f"  {verb:<12} {text}" for verb, (_, text) in VERBS.items())
        print(USAGE.format(verbs=verbs))
        return 0
    told.clear()  # one command after another in one process: each names its own files
    verb, rest = arguments[0], arguments[1:]
    if verb in ("--version", "-V"):
        print(f"fssbench {__version__}")
        return 0
    return guarded(lambda: _run(verb, rest))


def _run(verb: str, rest: list[str]) -> int:
    if verb not in VERBS:
        raise UserError(f"Unknown verb '{verb}'.{nearest(verb, VERBS)} See fssbench --help.")
    status: int = import_module(VERBS[verb][0]).run(verb, rest)
    return status


def guarded(function: Callable[[], int]) -> int:
    """Call `function`; an error meant for the user becomes one line on stderr, Ctrl-C a clean stop."""
    try:
        return function()
    except UserError as error:
        complain(one_line(error))
        return 2
    except KeyboardInterrupt:
        complain("interrupted; files are written whole or not at all, so none is half done.")
        return 130
    except BrokenPipeError:  # `fssbench leaderboard | head`
        sys.stderr.close()
        return 0
    except OSError as error:  # of a library that writes logs or checkpoints; our own files raise UserError
        if error.errno not in DISK_ERRORS:
            raise
        complain(
            f"Cannot write {error.filename or 'a file'}: {error.strerror}. Free some space or choose another folder."
        )
        return 2


def complain(message: str) -> None:
    """Print one line to stderr."""
    print(f"fssbench: {message}", file=sys.stderr)


def one_line(error: BaseException) -> str:
    """The message itself; a loader process wraps it in its traceback, of which only the last line matters."""
    text = str(error).strip()
    if text.startswith("Caught ") and "Original Traceback" in text:
        text = text.splitlines()[-1].split(": ", 1)[-1]
    return " ".join(text.split())
