"""What every recipe does around its work: open the stage, say so when it is finished, record how it ended."""

import json
import logging
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

from ssl_fast import distributed
from ssl_fast.train.run import Stage, open_stage, run_name
from ssl_fast.train.trainer import Interrupted

# What may differ between a run and its continuation without making it another run.
MAY_CHANGE = (
    "runs", "run", "data.workers", "data.prefetch", "data.start_method",
    "train.device", "train.threads", "train.log_every", "train.checkpoint_every",
    "train.checkpoint_steps", "train.tensorboard", "train.wandb",
)  # fmt: skip

Work = Callable[[Stage], tuple[dict[str, Any], list[str]]]  # -> result, names of the products


def run_stage(config: Any, name: tuple[str, str], inputs: dict[str, Path], work: Work) -> None:
    """Runs `work` in the stage's folder; prints result.json as the last line on stdout, on rank 0.

    Args:
        config: the recipe's dataclass, with `runs` (folder of all runs), `run` ("" makes a name) and `stage`.
        name: method and data set, for the name of an unnamed run.
        inputs: files or folders of earlier stages, by name.
        work: does it all; gets the stage, returns the final numbers and the files that later stages read.

    Exits with 143 or 130 after SIGTERM or SIGINT.
    """
    first = distributed.rank() == 0
    logging.basicConfig(level=logging.INFO if first else logging.ERROR, format="%(message)s", stream=sys.stderr)
    plain = {key: value for key, value in asdict(config).items() if key != "defaults"}
    run = config.run or run_name(*name, plain, MAY_CHANGE)
    stage = open_stage(config.runs, run, config.stage, plain, inputs, MAY_CHANGE)
    log = logging.getLogger(__name__)
    log.info("%s: %s", stage.path, "finished already" if stage.status == "finished" else stage.status)
    if stage.status != "finished":
        signal.signal(signal.SIGTERM, _stop)  # where no training loop is listening; SIGINT raises already
        try:
            result, products = work(stage)
        except Interrupted as interrupted:
            stage.interrupt(interrupted.exit_code - 128)
            sys.exit(interrupted.exit_code)
        except KeyboardInterrupt:
            stage.interrupt(signal.SIGINT)
            sys.exit(128 + signal.SIGINT)
        except Exception as error:
            stage.fail(f"{type(error).__name__}: {error}")
            raise
        stage.finish(result, products)
    if first:
        print(json.dumps(stage.result()), flush=True)
    distributed.shutdown()


def _stop(signum: int, frame: FrameType | None) -> None:
    raise Interrupted(signum)
