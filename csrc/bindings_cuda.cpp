// ssl_fast._cuda: one line per function of ops.h, the same names as in ssl_fast._cpu. The kernels run without the GIL.
#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "ops.h"

namespace py = pybind11;
using unlocked = py::call_guard<py::gil_scoped_release>;

PYBIND11_MODULE(_cuda, m) {
  m.attr("runtime_version") = CUDART_VERSION;
  m.def("ema_update", &ssl_fast::cuda::ema_update, unlocked());
  m.def("lars_workspace", &ssl_fast::cuda::lars_workspace);
  m.def("lars_step", &ssl_fast::cuda::lars_step, unlocked());
}
