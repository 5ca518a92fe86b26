"""Run folders: what makes the same command resume, skip what is finished, and refuse what has changed.

    runs/<run>/<stage>/config.yaml     the resolved config
                       stage.json      status, hashes of config, inputs and products: the truth for skipping
                       result.json     final numbers
                       metrics.jsonl   written by the tracker
                       checkpoints/    written by Checkpoints

The status is running, finished, failed or interrupted. It is advice for people; whether a process is alive is told by
the lock on the folder, which ends with its process however that dies.
"""

import json
import logging
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from ssl_fast import distributed
from ssl_fast.train.canonical import differences, flatten, hash_of, kept, to_json
from ssl_fast.train.durable import Lock, sha256_of, write_atomic

FORMAT_VERSION = 1
_STAGE, _CONFIG, _RESULT = "stage.json", "config.yaml", "result.json"
_log = logging.getLogger(__name__)


class Stage:
    """One opened stage. Rank 0 writes; on other ranks the writing methods do nothing.

    Attributes:
        path: the stage's folder.
        status: ``new``, ``resume`` or ``finished``.
    """

    def __init__(self, path: Path, status: str, record: dict[str, Any], lock: Lock | None) -> None:
        self.path = path
        self.status = status
        self._record = record
        self._lock = lock

    def result(self) -> dict[str, Any]:
        """The numbers of a finished stage.

        Raises:
            RuntimeError: the stage has no result yet.
        """
        try:
            result: dict[str, Any] = json.loads((self.path / _RESULT).read_text())
        except FileNotFoundError:
            raise RuntimeError(f"stage {self.path} has no {_RESULT}: it is not finished") from None
        return result

    def finish(self, result: dict[str, Any], products: Sequence[str] = ()) -> None:
        """Write result.json, record the products' hashes, mark the stage finished and release its folder.

        Args:
            result: final numbers; a number that is not finite is written as null.
            products: names, within the stage's folder, of the files or folders that later stages read.

        Raises:
            RuntimeError: a product does not exist.
        """
        if self._lock is None:
            return
        write_atomic(self.path / _RESULT, to_json(result, indent=1).encode())
        hashes = {}
        for name in [_RESULT, *products]:
            if not (self.path / name).exists():
                raise RuntimeError(f"product {name!r} of stage {self.path} was not written")
            hashes[name] = sha256_of(self.path / name)
        self._close("finished", products=hashes)

    def fail(self, reason: str) -> None:
        """Mark the stage failed, with one sentence saying why, and release its folder."""
        self._close("failed", reason=reason)

    def interrupt(self, signum: int) -> None:
        """Mark the stage interrupted by a signal, and release its folder."""
        self._close("interrupted", reason=signal.Signals(signum).name)

    def _close(self, status: str, **fields: Any) -> None:
        if self._lock is None:
            return
        self._record.update(status=status, ended=_now(), **fields)
        _write_record(self.path, self._record)
        self._lock.release()
        self._lock = None


def open_stage(
    root: str | Path,
    run: str,
    stage: str,
    config: dict[str, Any],
    inputs: dict[str, Path],
    ignore: Sequence[str] = (),
) -> Stage:
    """Open a stage's folder: new, to be resumed, or finished already.

    With several ranks every rank must call it; rank 0 decides and the others hear of it, errors included.

    Args:
        root: folder of all runs.
        run: name of the run.
        stage: name of the stage.
        config: the resolved config, plain values only.
        inputs: name and path of each file or folder that the stage reads; hashed by content.
        ignore: dotted keys (each with all below it) that may change between a run and its continuation, such as
            ``train.device``.

    Returns:
        The stage. ``finished`` is only said after the hashes of all products were verified.

    Raises:
        ValueError: a bad name, an input that is missing, or a config or input that differs from the one that the
            stage was started with.
        RuntimeError: another process works in the folder, or its stage.json is damaged.
    """
    path = Path(root) / _checked(run, "run") / _checked(stage, "stage")
    opened: Stage | None = None
    problem: tuple[str, str] | None = None
    if distributed.rank() == 0:
        try:
            opened = _open(path, config, inputs, ignore)
        except (ValueError, RuntimeError) as error:
            problem = ("ValueError" if isinstance(error, ValueError) else "RuntimeError", str(error))
        except OSError as error:
            problem = ("RuntimeError", f"folder {path} cannot be opened: {error}")
    said = distributed.broadcast_object((opened.status if opened else "", problem), distributed.world())
    status, problem = said
    if problem is not None:
        raise {"ValueError": ValueError, "RuntimeError": RuntimeError}[problem[0]](problem[1])
    return opened or Stage(path, status, record={}, lock=None)


def run_name(method: str, data: str, config: dict[str, Any], ignore: Sequence[str] = ()) -> str:
    """Default name of a run, ``<method>-<data>-<8 hex of the config's hash>``.

    Args:
        method: name of the method.
        data: name of the data set.
        config: the resolved config.
        ignore: dotted keys that do not change the name.
    """
    return f"{method}-{data}-{hash_of(kept(flatten(config), ignore))[:8]}"


def _open(path: Path, config: dict[str, Any], inputs: dict[str, Path], ignore: Sequence[str]) -> Stage:
    path.mkdir(parents=True, exist_ok=True)
    lock = Lock(path)
    if not lock.acquire():
        raise RuntimeError(f"stage {path} is being worked on by another process{_owner(path)}")
    try:
        return _open_locked(path, config, _hash_inputs(inputs), ignore, lock)
    except BaseException:
        lock.release()
        raise


def _open_locked(
    path: Path, config: dict[str, Any], inputs: dict[str, dict[str, str]], ignore: Sequence[str], lock: Lock
) -> Stage:
    import yaml  # type: ignore[import-untyped]

    config = json.loads(to_json(config))  # what a file can hold: tuples become lists
    record = _read_record(path)
    if record is None or _failed_at_once(path, record):
        status = "new"
        write_atomic(path / _CONFIG, yaml.safe_dump(config, sort_keys=False, allow_unicode=True).encode())
        record = {"config_sha256": hash_of(config), "inputs": inputs}
    else:
        _refuse_changes(path, record, config, inputs, ignore)
        status = "finished" if record["status"] == "finished" and _products_are_whole(path, record) else "resume"
    if status == "finished":
        lock.release()
        return Stage(path, status, record, None)
    record = {"config_sha256": record["config_sha256"], "inputs": record["inputs"], **_process()}
    _write_record(path, record)
    return Stage(path, status, record, lock)


def _failed_at_once(path: Path, record: dict[str, Any]) -> bool:
    """Whether the stage failed before it made anything: a corrected command may then begin it anew."""
    files = {p.name for p in path.rglob("*") if p.is_file() and p.stat().st_size and not p.name.startswith(".")}
    made = files - {_STAGE, _CONFIG}
    return record["status"] == "failed" and not made


def _refuse_changes(
    path: Path, record: dict[str, Any], config: dict[str, Any], inputs: dict[str, dict[str, str]], ignore: Sequence[str]
) -> None:
    changes = differences(kept(flatten(_saved_config(path, record)), ignore), kept(flatten(config), ignore))
    if changes:
        raise ValueError(
            f"stage {path} was started with another config ({changes}): give another run= or stage=, "
            "or the values that it was started with"
        )
    changes = differences(
        {name: entry["sha256"] for name, entry in record["inputs"].items()},
        {name: entry["sha256"] for name, entry in inputs.items()},
    )
    if changes:
        raise ValueError(
            f"stage {path} was started with other inputs (SHA-256 of {changes}): give another run= or stage=, "
            "or the inputs that it was started with"
        )


def _saved_config(path: Path, record: dict[str, Any]) -> dict[str, Any]:
    import yaml

    try:
        saved = yaml.safe_load((path / _CONFIG).read_bytes())
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        saved = None
    if not isinstance(saved, dict) or hash_of(saved) != record["config_sha256"]:
        raise RuntimeError(
            f"{path / _CONFIG} is not the config that the stage was started with (edited or damaged): "
            "put it back, or give another run= or stage="
        )
    return saved


def _products_are_whole(path: Path, record: dict[str, Any]) -> bool:
    for name, expected in record["products"].items():
        product = path / name
        if not product.exists():
            problem = "is missing"
        elif sha256_of(product) != expected:
            problem = "is damaged (its SHA-256 has changed)"
        else:
            continue
        _log.warning("product %s %s: the stage runs again", product, problem)
        return False
    return True


def _hash_inputs(inputs: dict[str, Path]) -> dict[str, dict[str, str]]:
    hashed = {}
    for name, path in inputs.items():
        if not Path(path).exists():
            raise ValueError(f"input {name!r} is missing: {path} does not exist")
        hashed[name] = {"path": str(path), "sha256": sha256_of(Path(path))}
    return hashed


def _read_record(path: Path) -> dict[str, Any] | None:
    """stage.json; None for a folder in which no stage has begun."""
    try:
        record = json.loads((path / _STAGE).read_bytes())
        version, status = record["format_version"], record["status"]
    except FileNotFoundError:
        strangers = sorted(p.name for p in path.iterdir() if p.name != _CONFIG and not p.name.startswith("."))
        if strangers:
            raise ValueError(
                f"folder {path} has no {_STAGE} and yet holds {', '.join(strangers[:3])}: give another run= or stage="
            ) from None
        return None
    except (ValueError, KeyError, TypeError):
        raise RuntimeError(f"{path / _STAGE} is damaged: delete the stage's folder or give another run=") from None
    if version > FORMAT_VERSION:
        raise RuntimeError(
            f"{path / _STAGE} has format_version {version}, and this ssl_fast reads up to {FORMAT_VERSION}"
        )
    assert status in ("running", "finished", "failed", "interrupted"), status
    return dict(record)


def _write_record(path: Path, record: dict[str, Any]) -> None:
    write_atomic(path / _STAGE, to_json({"format_version": FORMAT_VERSION, **record}, indent=1).encode())


def _process() -> dict[str, Any]:
    return {"status": "running", "pid": os.getpid(), "host": socket.gethostname(), "started": _now()}


def _owner(path: Path) -> str:
    try:
        record = json.loads((path / _STAGE).read_bytes())
        return f" (process {record['pid']} on {record['host']}, since {record['started']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def _checked(name: str, argument: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.=,+-]*", name):
        raise ValueError(f"{argument} must be a name of letters, digits and . _ - = , + only, got {name!r}")
    return name


class Signals:
    """Turns SIGTERM and SIGINT into a flag while training runs, so that a step ends before the run does.

    A second SIGINT raises KeyboardInterrupt at once. Outside the main thread nothing is caught.

    Attributes:
        received: number of the first signal received, or None.

    Example:
        >>> with Signals() as signals:
        ...     os.kill(os.getpid(), signal.SIGTERM)
        ...     (signals.received, signals.exit_code)
        (15, 143)
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    @property
    def exit_code(self) -> int:
        """What the process should exit with: 143 after SIGTERM, 130 after SIGINT, 0 without a signal."""
        return 0 if self.received is None else 128 + self.received

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGTERM, signal.SIGINT):
                self._previous[signum] = signal.signal(signum, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous.clear()

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if self.received is not None and signum == signal.SIGINT:
            raise KeyboardInterrupt
        if self.received is None:
            self.received = signum
