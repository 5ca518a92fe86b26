// ssl_fast._cuda: one line per function of ops.h, the same names as in ssl_fast._cpu. The kernels run without the GIL.
#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cuda/api.h"

namespace py = pybind11;
using unlocked = py::call_guard<py::gil_scoped_release>;

PYBIND11_MODULE(_cuda, m) {
  m.attr("sources") = SSL_FAST_SOURCES;
  m.attr("runtime_version") = CUDART_VERSION;
  m.def("ema_update", &ssl_fast::cuda::ema_update, unlocked());
  m.def("lars_workspace", &ssl_fast::cuda::lars_workspace);
  m.def("lars_step", &ssl_fast::cuda::lars_step, unlocked());
  m.def("lookahead_update", &ssl_fast::cuda::lookahead_update, unlocked());
  m.def("square_sum_workspace", &ssl_fast::cuda::square_sum_workspace);
  m.def("square_sum", &ssl_fast::cuda::square_sum, unlocked());
  m.def("scale", &ssl_fast::cuda::scale, unlocked());
  m.def("centralize", &ssl_fast::cuda::centralize, unlocked());
  m.def("sam_ascend", &ssl_fast::cuda::sam_ascend, unlocked());
  m.def("sam_sgd", &ssl_fast::cuda::sam_sgd, unlocked());
  m.def("sam_adamw", &ssl_fast::cuda::sam_adamw, unlocked());
  m.def("lamb_workspace", &ssl_fast::cuda::lamb_workspace);
  m.def("lamb_step", &ssl_fast::cuda::lamb_step, unlocked());
  m.def("augment_workspace", &ssl_fast::cuda::augment_workspace);
  m.def("augment", &ssl_fast::cuda::augment, unlocked());
}
