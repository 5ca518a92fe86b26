// ssl_fast._cpu: one line per function of ops.h. The kernels run without the GIL.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "ops.h"

namespace py = pybind11;
using unlocked = py::call_guard<py::gil_scoped_release>;

PYBIND11_MODULE(_cpu, m) {
  m.def("isa", &ssl_fast::isa);
  m.def("set_isa", &ssl_fast::set_isa);
  m.def("nt_xent_forward", &ssl_fast::nt_xent_forward, unlocked());
  m.def("nt_xent_backward", &ssl_fast::nt_xent_backward, unlocked());
  m.def("info_nce_forward", &ssl_fast::info_nce_forward, unlocked());
  m.def("clip_loss_forward", &ssl_fast::clip_loss_forward, unlocked());
  m.def("clip_loss_backward", &ssl_fast::clip_loss_backward, unlocked());
  m.def("siglip_loss_forward", &ssl_fast::siglip_loss_forward, unlocked());
  m.def("ema_update", &ssl_fast::ema_update, unlocked());
  m.def("lars_step", &ssl_fast::lars_step, unlocked());
}
