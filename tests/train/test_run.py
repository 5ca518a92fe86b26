import json
import os
import re
import signal
import threading
from pathlib import Path

import pytest
import torch.distributed as dist
import yaml

from ssl_fast.train.run import Signals, Stage, open_stage, run_name

CONFIG = {
    "method": {"name": "simclr", "temperature": 0.1},
    "data": {"name": "cifar10", "scale": (0.08, 1.0), "lr": 1e-06},
    "train": {"epochs": 10, "device": "cpu", "loader": {"workers": 2}},
}
IGNORE = ["train.device", "train.loader"]


def changed(**values: object) -> dict:
    """CONFIG with dotted keys (written with __) replaced."""
    config = json.loads(json.dumps(CONFIG))
    for key, value in values.items():
        *folders, leaf = key.split("__")
        place = config
        for folder in folders:
            place = place[folder]
        place[leaf] = value
    return config


@pytest.fixture
def begin(tmp_path: Path):
    def begin(config: dict = CONFIG, inputs: dict | None = None, **options: object) -> Stage:
        return open_stage(tmp_path / "runs", "first", "pretrain", config, inputs or {}, ignore=IGNORE, **options)

    return begin


def record(stage: Stage) -> dict:
    return json.loads((stage.path / "stage.json").read_text())


def abandon(begin, in_child, kill_self, **options: object) -> None:
    """Open the stage in a process that is then killed."""

    def work() -> None:
        begin(**options)
        kill_self()

    assert in_child(work) == -9


# the life of a stage


def test_a_new_stage_records_what_it_is(begin, tmp_path: Path):
    (tmp_path / "input").write_text("abc")
    stage = begin(inputs={"weights": tmp_path / "input"})
    assert stage.status == "new" and stage.path == tmp_path / "runs" / "first" / "pretrain"
    assert yaml.safe_load((stage.path / "config.yaml").read_text()) == json.loads(json.dumps(CONFIG))
    said = record(stage)
    assert (said["status"], said["pid"]) == ("running", os.getpid())
    assert said["inputs"]["weights"]["sha256"].startswith("ba7816bf")
    with pytest.raises(RuntimeError, match="not finished"):
        stage.result()


def test_a_finished_stage_says_so_with_its_result(begin):
    stage = begin()
    (stage.path / "backbone.safetensors").write_bytes(b"weights")
    stage.finish({"knn_top1": 0.7, "worst": float("nan")}, ["backbone.safetensors"])
    assert record(stage)["status"] == "finished" and set(record(stage)["products"]) == {
        "result.json",
        "backbone.safetensors",
    }
    for _ in range(2):
        again = begin()
        assert again.status == "finished" and again.result() == {"knn_top1": 0.7, "worst": None}
    again.fail("a finished stage stays finished")
    assert record(stage)["status"] == "finished"


@pytest.mark.parametrize("end", ["fail", "interrupt", "kill"])
def test_an_unfinished_stage_resumes(begin, in_child, kill_self, end: str):
    if end == "kill":
        abandon(begin, in_child, kill_self)
    else:
        stage = begin()
        (stage.path / "checkpoints").mkdir()
        (stage.path / "checkpoints" / "step-1").write_text("weights")
        stage.fail("out of memory") if end == "fail" else stage.interrupt(signal.SIGTERM)
        said = record(stage)
        assert (said["status"], said["reason"]) in {("failed", "out of memory"), ("interrupted", "SIGTERM")}
    stage = begin()
    assert stage.status == "resume" and record(stage)["status"] == "running" and "reason" not in record(stage)
    stage.finish({}, [])
    assert begin().status == "finished"


def test_a_process_killed_before_the_stage_was_recorded_leaves_a_new_stage(begin, in_child, kill_self, monkeypatch):
    def work() -> None:
        monkeypatch.setattr("ssl_fast.train.run._write_record", lambda *args: kill_self())
        begin()

    assert in_child(work) == -9
    assert begin(changed(train__epochs=11)).status == "new"


def test_a_product_that_was_not_written_cannot_be_promised(begin):
    with pytest.raises(RuntimeError, match=r"product 'model\.onnx' .* was not written"):
        begin().finish({}, ["model.onnx"])


@pytest.mark.parametrize("damage", ["flip", "delete", "result"])
def test_a_damaged_product_runs_the_stage_again(begin, caplog, damage: str):
    stage = begin()
    product = stage.path / "model"
    product.mkdir()
    (product / "weights").write_bytes(b"weights")
    stage.finish({"a": 1}, ["model"])
    if damage == "flip":
        (product / "weights").write_bytes(b"weighus")
    elif damage == "delete":
        (product / "weights").unlink()
        product.rmdir()
    else:
        product = stage.path / "result.json"
        product.write_text('{"a": 2}')
    stage = begin()
    assert stage.status == "resume" and len(caplog.records) == 1
    assert str(product) in caplog.text and "runs again" in caplog.text
    product.exists() or product.mkdir()
    stage.finish({"a": 1}, ["model"])
    assert begin().status == "finished"


# what may not change


@pytest.mark.parametrize("finished", [False, True])
def test_a_changed_config_is_refused_with_the_difference(begin, finished: bool):
    stage = begin()
    (stage.path / "metrics.jsonl").touch()
    stage.finish({}, []) if finished else stage.interrupt(15)
    config = changed(train__epochs=20, method__queue=5, data__scale=[0.2, 1.0], train__device="cuda")
    del config["method"]["temperature"]
    with pytest.raises(ValueError) as error:
        begin(config)
    text = str(error.value)
    assert str(stage.path) in text and "\n" not in text
    for difference in (
        "train.epochs: 10 -> 20",
        "method.queue: absent -> 5",
        "method.temperature: 0.1 -> absent",
        "data.scale: [0.08, 1.0] -> [0.2, 1.0]",
    ):
        assert difference in text
    assert "device" not in text
    assert begin().status == ("finished" if finished else "resume")  # nothing was spoilt, and the lock is free


def test_a_stage_that_failed_before_it_made_anything_may_begin_anew_with_another_config(begin):
    begin().fail("data.path: no file missing.npz")
    stage = begin(changed(train__epochs=20))
    assert stage.status == "new"
    assert "epochs: 20" in (stage.path / "config.yaml").read_text()


def test_an_empty_log_is_nothing_made_and_a_checkpoint_is(begin):
    stage = begin()
    (stage.path / "metrics.jsonl").touch()
    (stage.path / "checkpoints").mkdir()
    stage.fail("train.seed: expected a number")
    stage = begin(changed(train__epochs=20))
    assert stage.status == "new"
    (stage.path / "checkpoints" / "step-1").write_text("weights")
    stage.fail("out of memory")
    with pytest.raises(ValueError, match="was started with another config"):
        begin(changed(train__epochs=30))


def test_ignored_keys_may_change(begin):
    begin().interrupt(15)
    assert begin(changed(train__device="cuda", train__loader={"workers": 8, "prefetch": 2})).status == "resume"


def test_tuples_and_small_numbers_survive_the_file(begin):
    begin().interrupt(15)
    assert begin(changed()).status == "resume"


@pytest.mark.parametrize("content", ["train: {epochs: 20}", "", "a: [", "- 1", "!!python/object/apply:os.abort []"])
def test_an_edited_config_file_is_refused(begin, content: str):
    stage = begin()
    stage.interrupt(15)
    (stage.path / "config.yaml").write_text(content)
    with pytest.raises(RuntimeError, match=r"config\.yaml is not the config that the stage was started with"):
        begin()


def test_changed_inputs_are_refused(begin, tmp_path: Path):
    path, other = tmp_path / "a", tmp_path / "b"
    path.write_text("1")
    other.write_text("1")
    begin(inputs={"weights": path}).interrupt(15)
    stage = begin(inputs={"weights": other})  # the content counts, not the place
    assert stage.status == "resume"
    stage.interrupt(15)
    path.write_text("2")
    with pytest.raises(ValueError, match=r"other inputs \(SHA-256 of weights: \w+ -> \w+\)"):
        begin(inputs={"weights": path})
    with pytest.raises(ValueError, match=r"weights: .* -> absent"):
        begin(inputs={})
    path.unlink()
    with pytest.raises(ValueError, match="input 'weights' is missing"):
        begin(inputs={"weights": path})


# folders that are not ours


@pytest.mark.parametrize("content", ["", "[]", "{", '{"format_version": 1}'])
def test_a_damaged_record_is_one_sentence(begin, content: str):
    stage = begin()
    stage.interrupt(15)
    (stage.path / "stage.json").write_text(content)
    with pytest.raises(RuntimeError, match=r"stage\.json is damaged"):
        begin()


def test_a_later_format_is_refused(begin):
    stage = begin()
    stage.interrupt(15)
    (stage.path / "stage.json").write_text(json.dumps({**record(stage), "format_version": 2}))
    with pytest.raises(RuntimeError, match=r"stage\.json has format_version 2"):
        begin()


def test_a_folder_with_strange_files_is_left_alone(begin, tmp_path: Path):
    folder = tmp_path / "runs" / "first" / "pretrain"
    folder.mkdir(parents=True)
    (folder / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match=r"has no stage\.json and yet holds thesis\.tex"):
        begin()


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "/abs", "a\nb", "-x", "a b"])
def test_names_stay_inside_the_root(tmp_path: Path, name: str):
    with pytest.raises(ValueError, match="run must be a name"):
        open_stage(tmp_path, name, "pretrain", {}, {})
    with pytest.raises(ValueError, match="stage must be a name"):
        open_stage(tmp_path, "run", name, {}, {})
    assert list(tmp_path.iterdir()) == []


def test_an_unusable_root_is_one_sentence(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RuntimeError, match=r"cannot be opened: .*Not a directory"):
        open_stage(tmp_path / "file", "run", "pretrain", {}, {})


# processes


def test_the_second_process_on_a_folder_is_refused(begin, in_child):
    stage = begin()

    def second() -> None:
        with pytest.raises(RuntimeError) as error:
            begin()
        assert re.search(rf"another process \(process {os.getppid()} on .+, since \d{{4}}-", str(error.value))
        assert "\n" not in str(error.value)

    assert in_child(second) == 0
    stage.interrupt(15)
    assert in_child(lambda: begin() and None) == 0


def test_ranks_share_one_decision(begin, tmp_path: Path, in_child):
    def both() -> None:
        rank = 1 if os.fork() == 0 else 0
        dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=rank, world_size=2)
        stage = begin()
        assert stage.status == "new" and stage.path.is_dir()
        if rank == 1:
            stage.finish({"from": "rank 1"}, ["nothing"])  # rank 1 writes nothing
            stage.fail("rank 1")
        dist.barrier()
        assert record(stage)["status"] == "running"
        dist.barrier()
        if rank == 0:
            stage.interrupt(signal.SIGTERM)
        dist.barrier()
        # rank 1's own config differs: rank 0's decides; then rank 0's is refused on both
        assert begin(CONFIG if rank == 0 else changed(train__epochs=99)).status == "resume"
        with pytest.raises(RuntimeError, match="another process"):
            begin()
        dist.barrier()
        dist.destroy_process_group()
        if rank == 1:
            os._exit(0)
        assert os.wait()[1] == 0

    assert in_child(both) == 0


# names


def test_the_default_name_follows_the_config():
    name = run_name("simclr", "cifar10", CONFIG)
    assert re.fullmatch(r"simclr-cifar10-[0-9a-f]{8}", name)
    assert run_name("simclr", "cifar10", changed()) == name
    assert run_name("simclr", "cifar10", changed(train__epochs=11)) != name
    moved = changed(train__device="cuda")
    assert run_name("simclr", "cifar10", moved) != name
    assert run_name("simclr", "cifar10", moved, IGNORE) == run_name("simclr", "cifar10", CONFIG, IGNORE)


# signals


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_becomes_a_flag_and_an_exit_code(signum: int, code: int):
    before = signal.getsignal(signum)
    with Signals() as signals:
        assert signals.received is None and signals.exit_code == 0
        os.kill(os.getpid(), signum)
        assert (signals.received, signals.exit_code) == (signum, code)
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received == signum  # the first one counts
    assert signal.getsignal(signum) == before


def test_the_second_interrupt_raises_at_once():
    with Signals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert signals.exit_code == 130


def test_other_threads_catch_nothing():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with Signals() as signals:
            seen.append((signal.getsignal(signal.SIGTERM), signals.received))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(before, None)]
