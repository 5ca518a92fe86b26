"""A built engine on a GPU: deserialise, run, with PyTorch's memory and stream."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ssl_fast.export.tensorrt import Api, make_logger


class Engine:
    """One input [N, C, H, W] fp32, one output [N, F] fp32, as `export_onnx` makes them.

    Args:
        path: an engine that you built (an engine is code: never load a stranger's).
        api: the same TensorRT, of the version that built it.
        device: CUDA device, of the architecture that the engine was built for.

    Raises:
        RuntimeError: when there is no GPU, or TensorRT refuses the file; with its own words.
    """

    def __init__(self, path: str | Path, api: Api, device: str = "cuda") -> None:
        if not torch.cuda.is_available():
            raise RuntimeError(f"running {Path(path).name} needs a GPU, and there is none")
        self.device = torch.device(device)
        log = make_logger(api)
        with torch.cuda.device(self.device):
            self._runtime = api.trt.Runtime(log)  # must outlive the engine
            engine = self._runtime.deserialize_cuda_engine(Path(path).read_bytes())
            context = engine.create_execution_context() if engine is not None else None
        if engine is None or context is None:
            raise RuntimeError(f"{api.kind} {api.version} cannot load {Path(path).name}: {'; '.join(log.errors)}")
        self._engine, self._context = engine, context
        self.input, self.output = (engine.get_tensor_name(i) for i in range(2))
        low, _, high = engine.get_tensor_profile_shape(self.input, 0)
        self.min_batch, self.max_batch = int(low[0]), int(high[0])

    def __call__(
        self,
        x: Tensor,  # [N, C, H, W] fp32, any device
    ) -> Tensor:  # [N, F] fp32, on the engine's device
        """Run on the current stream, without waiting for it.

        Raises:
            ValueError: when N is outside the engine's batch profile.
        """
        context = self._context
        if not self.min_batch <= len(x) <= self.max_batch:
            raise ValueError(
                f"x must have {self.min_batch} to {self.max_batch} images, the engine's profile, got {len(x)}"
            )
        x = x.to(self.device, torch.float32).contiguous()
        context.set_input_shape(self.input, tuple(x.shape))
        out = torch.empty(tuple(context.get_tensor_shape(self.output)), device=self.device)
        context.set_tensor_address(self.input, x.data_ptr())
        context.set_tensor_address(self.output, out.data_ptr())
        stream = torch.cuda.current_stream(self.device)
        if not context.execute_async_v3(stream.cuda_stream):
            raise RuntimeError("TensorRT could not run the engine; its log says why")
        x.record_stream(stream)
        return out
