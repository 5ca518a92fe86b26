"""Every TensorRT attribute that the package names exists in the published bindings of TensorRT 10, 11 and RTX.

The full TensorRT cannot be installed from the ordinary index, but its bindings can be downloaded, and they import
beside libraries of the right names that do nothing: enough to ask them what they have.
"""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ssl_fast.export import engine, tensorrt

# how the package's two files call an object -> the API's class
OBJECTS = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "build_config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "tensor": "ITensor",
    "cache": "ITimingCache",
    "creation": "NetworkDefinitionCreationFlag",
    "_runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
}
# asked only of RTX
AHEAD_OF_TIME = {
    "ComputeCapability",
    "ComputeCapability.__members__",
    "IBuilderConfig.num_compute_capabilities",
    "IBuilderConfig.set_compute_capability",
}
# functions of the libraries that the bindings link to
ENTRY_POINTS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)
ASK = """
import functools, importlib, json, sys
trt = importlib.import_module(sys.argv[1])
def has(path):
    try: functools.reduce(getattr, path.split("."), trt)
    except AttributeError: return False
    return True
print(json.dumps([trt.__version__, [path for path in sys.argv[2:] if not has(path)]]))
"""


def chain(node: ast.expr) -> list[str]:
    """`a.b.c` -> ["a", "b", "c"]; anything else at the root gives "?"."""
    if isinstance(node, ast.Attribute):
        return [*chain(node.value), node.attr]
    return [node.id if isinstance(node, ast.Name) else "?"]


def attributes() -> set[str]:
    """Paths below the module, such as `IBuilderConfig.set_timing_cache`, that the package's sources name."""
    found = set()
    for module in (tensorrt, engine):
        tree = ast.parse(Path(module.__file__).read_text())
        for node in (node for node in ast.walk(tree) if isinstance(node, ast.Attribute)):
            names = chain(node)
            if "trt" in names[:-1]:
                found.add(".".join(names[names.index("trt") + 1 :]))
            elif names[-2] in OBJECTS:
                found.add(f"{OBJECTS[names[-2]]}.{names[-1]}")
    return found - {"__version__"}


def ask(module: str, paths: set[str], folder: Path | None = None) -> tuple[str, list[str]]:
    """(version, missing paths) of a bindings module, imported in a process of its own."""
    command = [sys.executable, "-c", ASK, module, *sorted(paths)]
    environment = {"LD_LIBRARY_PATH": str(folder / "lib"), "PATH": ""} if folder else None
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr
    version, missing = json.loads(done.stdout.splitlines()[-1])
    return version, missing


def test_sources_are_read():
    paths = attributes()
    assert {"Builder", "ILogger.Severity.ERROR", "OnnxParser.parse_from_file", "ITimingCache.serialize"} <= paths
    assert {"ICudaEngine.create_execution_context", "IExecutionContext.execute_async_v3"} <= paths
    assert paths >= AHEAD_OF_TIME
    assert not any(path.startswith("BuilderFlag") for path in paths)  # precision flags are gone in TensorRT 11
    assert len(paths) >= 40


def test_rtx_has_them():
    try:
        tensorrt.load_api("tensorrt_rtx")
    except RuntimeError as error:
        pytest.skip(str(error))
    _, missing = ask("tensorrt_rtx_bindings", attributes() | {"IBuilderConfig.no_such_thing"})
    assert missing == ["IBuilderConfig.no_such_thing"]


def download(major: int, folder: Path) -> None:
    """The newest bindings wheel of TensorRT `major` unpacked into `folder`, and libraries to import it beside."""
    wheel = f"tensorrt-cu13-bindings=={major}.*"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(folder), wheel]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"{wheel} cannot be downloaded: {done.stderr.strip().splitlines()[-1]}")
    shutil.unpack_archive(next(folder.glob("*.whl")), folder, "zip")
    (folder / "lib").mkdir()
    source = folder / "lib" / "empty.c"
    source.write_text("".join(f"void {name}(void) {{}}\n" for name in ENTRY_POINTS))
    for name in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
        target = str(folder / "lib" / f"lib{name}.so.{major}")
        subprocess.run(["cc", "-shared", "-fPIC", str(source), "-o", target], check=True)


@pytest.mark.nightly
@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler for the stand-in libraries")
@pytest.mark.parametrize("major", [10, 11])
def test_published_tensorrt_has_them(major, tmp_path):
    download(major, tmp_path)
    version, missing = ask("tensorrt_bindings", attributes() - AHEAD_OF_TIME | {"BuilderFlag.FP16"}, tmp_path)
    assert version.split(".")[0] == str(major)
    # a path known to have gone, to show that the question is answered
    assert missing == ([] if major == 10 else ["BuilderFlag.FP16"])
