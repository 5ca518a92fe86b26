"""The CUDA kernels themselves, translated to C++ and run on a CPU, a thread of the system for each of a block's.

The tests that the GPU has are run there too, but for streams, graphs and what is too large.
"""

import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from ssl_fast.data.engine_fused import FusedEngine
from ssl_fast.data.engine_fused_gpu import FusedGpuEngine
from ssl_fast.data.view_presets import simclr
from ssl_fast.data.views import View, draw
from tests.cuda_on_host.build import build, translated, unavailable
from tests.cuda_on_host.use import loaded, on_host
from tests.ops.cuda import test_multi_tensor_cuda as multi_tensor
from tests.ops.cuda import test_optimizer_steps_cuda as optimizer_steps

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=unavailable() or "")
ROOT = Path(__file__).resolve().parents[3]
EMA_TYPES = [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float16), (torch.float64, torch.float32)]
LARGE_BLUR = View(size=90, blur=1.0, blur_sigma=(9.0, 9.0), interpolation="bicubic", mean=(0.0,) * 3, std=(1.0,) * 3)


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    return loaded(build(tmp_path_factory.mktemp("host")))


@pytest.fixture(autouse=True)
def _kernels_on_host(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if "module" not in request.fixturenames:
        yield
        return
    for tests in (multi_tensor, optimizer_steps):
        monkeypatch.setattr(tests, "DEVICE", "cpu")
    with on_host(request.getfixturevalue("module")):
        yield


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float32,
        *(pytest.param(t, marks=pytest.mark.nightly) for t in (torch.bfloat16, torch.float64, torch.float16)),
    ],
    ids=str,
)
def test_every_step_equals_the_float64_reference(module: ModuleType, dtype: torch.dtype) -> None:
    optimizer_steps.test_every_op_equals_the_float64_reference(dtype)
    multi_tensor.test_lars_equals_the_float64_reference(dtype, dtype != torch.float32)


@pytest.mark.parametrize(("target", "source"), EMA_TYPES, ids=str)
def test_ema_of_two_types(module: ModuleType, target: torch.dtype, source: torch.dtype) -> None:
    multi_tensor.test_ema_equals_the_float64_reference(target, source)


def test_layouts_and_unaligned_gradients(module: ModuleType) -> None:
    multi_tensor.test_layouts_and_unaligned_gradients()


@pytest.mark.nightly
def test_more_tensors_than_one_launch_holds(module: ModuleType) -> None:
    multi_tensor.test_more_tensors_than_one_launch_holds()
    optimizer_steps.test_clipping_two_runs_and_the_number_of_launches()


@pytest.mark.nightly
def test_two_runs_give_the_same_bits(module: ModuleType) -> None:
    multi_tensor.test_two_runs_give_the_same_bits()


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_views_are_those_of_the_cpus_engine(
    module: ModuleType, dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    sizes = np.array([(31, 40), (120, 9), (1, 1)])
    images = [torch.randint(256, (h, w, 3), dtype=torch.uint8) for h, w in sizes.tolist()]
    views = [*simclr(33), LARGE_BLUR, View(size=5, solarize=1.0, mean=(0.5,) * 3, std=(0.2,) * 3)]
    table = draw(views, 0, 0, np.arange(len(images)), sizes)
    found = FusedGpuEngine(views, 3, torch.device("cpu"), dtype, memory_format)(images, table)
    expected = FusedEngine(views, 3, torch.float32)([image.numpy() for image in images], table)
    for view, ours, exact in zip(views, found, expected, strict=True):
        assert ours.dtype == dtype and ours.is_contiguous(memory_format=memory_format)
        levels = (ours.float() - exact).abs() * torch.tensor(view.std).view(1, -1, 1, 1) * 255
        assert levels.max() < (1e-3 if dtype == torch.float32 else 0.2 if dtype == torch.float16 else 1.5)


@pytest.mark.nightly
@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_under_the_sanitizers(tmp_path: Path, sanitizer: str) -> None:
    """Every kernel once: nothing out of bounds, no race among a block's threads."""
    module = build(tmp_path, f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all", "-g1", "-fno-omit-frame-pointer")
    library = {"address,undefined": "libasan.so", "thread": "libtsan.so"}[sanitizer]
    preload = subprocess.run(["c++", f"-print-file-name={library}"], capture_output=True, text=True).stdout.strip()
    command = [sys.executable, "-m", "tests.cuda_on_host.every_kernel", str(module)]
    options = {"ASAN_OPTIONS": "detect_leaks=0", "OMP_NUM_THREADS": "1"}
    environment = {"PATH": "/usr/bin:/bin", "LD_PRELOAD": preload, **options}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("the sanitizer cannot run with this kernel's layout of addresses")
    assert done.returncode == 0 and "all finite" in done.stdout, done.stderr[-3000:]
    assert not any(said in done.stderr for said in ("ERROR: ", "WARNING: Thread", "runtime error")), done.stderr[-3000:]


def test_launches_are_translated() -> None:
    source = "extern __shared__ float s[];\nkernel<T, 3>\n    <<<f(a), kThreads, 0, stream>>>(table, g(b)[1]);"
    expected = "float* s = reinterpret_cast<float*>(on_host::team->shared.get());\n"
    expected += "on_host::launch(f(a), kThreads, 0, stream, [&] { kernel<T, 3>(table, g(b)[1]); });"
    assert translated(source) == expected


def test_these_tests_take_the_hosts_module(module: ModuleType) -> None:
    assert import_module("ssl_fast._cuda") is module and module.sources == "host"
