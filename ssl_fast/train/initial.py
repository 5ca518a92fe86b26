"""A new run that starts from another run's whole method: backbone, heads, teacher, queue."""

from __future__ import annotations

import logging
from pathlib import Path

from torch import nn

from ssl_fast import distributed
from ssl_fast.models.weights import WeightsReport, fill
from ssl_fast.train.checkpoint import Checkpoints

log = logging.getLogger(__name__)
REQUIRED = 0.9


def find_initial(runs: str | Path, init: str) -> Path:
    """The folder of checkpoints that `init` names.

    Args:
        runs: folder of all runs.
        init: name of a run, a run's folder, or the folder of one of its stages; of a run, the stage `pretrain`.

    Raises:
        ValueError: there is none.
    """
    places = [stage / "checkpoints" for stage in (Path(runs) / init / "pretrain", Path(init) / "pretrain", Path(init))]
    for folder in places:
        if Checkpoints(folder).steps():
            return folder
    raise ValueError(
        f"init: no checkpoint in {' or '.join(map(str, places))}; for a file of weights alone use backbone.weights"
    )


def start_from(method: nn.Module, checkpoints: Path) -> WeightsReport:
    """Loads what fits, by name and shape, of the newest good checkpoint's method into `method`, in place.

    The optimiser, the step and the schedule start anew. What the two methods do not share (other heads, a queue of
    another length) stays as it was, and is named in the log. Every rank must call it.

    Args:
        checkpoints: a folder from `find_initial`.

    Raises:
        ValueError: no checkpoint is good, or less than 90 % of the backbone's tensors fit (nothing is loaded then).
    """
    found = Checkpoints(checkpoints).load()
    if found is None:
        raise ValueError(f"init: every checkpoint in {checkpoints} is damaged")
    state, path = found[0]["method"], found[1]
    report = fill(method, state)
    backbone = [name for name in method.state_dict() if name.startswith("backbone.")]
    filled = len(set(backbone).intersection(report.matched))
    if filled < REQUIRED * len(backbone):
        raise ValueError(f"init: {path} fills {filled} of the backbone's {len(backbone)} tensors ({report})")
    method.load_state_dict({name: state[name] for name in report.matched}, strict=False)
    if distributed.rank() == 0:
        log.info("init from %s: %s", path, report)
    return report
