// ssl_fast._cpu: one line per function of ops.h. The kernels run without the GIL.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/tensor.h"
#include "ops.h"

namespace py = pybind11;
using ssl_fast::taking_tensors;
using unlocked = py::call_guard<py::gil_scoped_release>;

PYBIND11_MODULE(_cpu, m) {
  m.attr("sources") = SSL_FAST_SOURCES;
  m.def("isa", &ssl_fast::isa);
  m.def("set_isa", &ssl_fast::set_isa);
  m.def("nt_xent_forward", taking_tensors(&ssl_fast::nt_xent_forward), unlocked());
  m.def("nt_xent_backward", taking_tensors(&ssl_fast::nt_xent_backward), unlocked());
  m.def("self_contrast", taking_tensors(&ssl_fast::self_contrast), unlocked());
  m.def("info_nce_forward", taking_tensors(&ssl_fast::info_nce_forward), unlocked());
  m.def("info_nce", taking_tensors(&ssl_fast::info_nce), unlocked());
  m.def("knn_topk", taking_tensors(&ssl_fast::knn_topk), unlocked());
  m.def("prototypes_forward", taking_tensors(&ssl_fast::prototypes_forward), unlocked());
  m.def("prototypes_log_sums", taking_tensors(&ssl_fast::prototypes_log_sums), unlocked());
  m.def("prototypes", taking_tensors(&ssl_fast::prototypes), unlocked());
  m.def("prototype_logits_forward", taking_tensors(&ssl_fast::prototype_logits_forward), unlocked());
  m.def("prototype_logits", taking_tensors(&ssl_fast::prototype_logits), unlocked());
  m.def("token_weights", taking_tensors(&ssl_fast::token_weights), unlocked());
  m.def("sinkhorn_column_logs", taking_tensors(&ssl_fast::sinkhorn_column_logs), unlocked());
  m.def("sinkhorn_balance", taking_tensors(&ssl_fast::sinkhorn_balance), unlocked());
  m.def("sinkhorn_assignments", taking_tensors(&ssl_fast::sinkhorn_assignments), unlocked());
  m.def("koleo_neighbours", taking_tensors(&ssl_fast::koleo_neighbours), unlocked());
  m.def("byol_forward", taking_tensors(&ssl_fast::byol_forward), unlocked());
  m.def("byol", taking_tensors(&ssl_fast::byol), unlocked());
  m.def("barlow_twins", taking_tensors(&ssl_fast::barlow_twins), unlocked());
  m.def("vicreg", taking_tensors(&ssl_fast::vicreg), unlocked());
  m.def("margin_softmax", taking_tensors(&ssl_fast::margin_softmax), unlocked());
  m.def("adaface_margins", taking_tensors(&ssl_fast::adaface_margins), unlocked());
  m.def("margin_targets", taking_tensors(&ssl_fast::margin_targets), unlocked());
  m.def("margin_loss", taking_tensors(&ssl_fast::margin_loss), unlocked());
  m.def("clip_loss_forward", taking_tensors(&ssl_fast::clip_loss_forward), unlocked());
  m.def("clip_loss_backward", taking_tensors(&ssl_fast::clip_loss_backward), unlocked());
  m.def("clip_loss", taking_tensors(&ssl_fast::clip_loss), unlocked());
  m.def("siglip_loss_forward", taking_tensors(&ssl_fast::siglip_loss_forward), unlocked());
  m.def("siglip_loss", taking_tensors(&ssl_fast::siglip_loss), unlocked());
  m.def("ema_update", &ssl_fast::ema_update, unlocked());
  m.def("lars_step", &ssl_fast::lars_step, unlocked());
  m.def("lookahead_update", &ssl_fast::lookahead_update, unlocked());
  m.def("square_sum", &ssl_fast::square_sum, unlocked());
  m.def("scale", &ssl_fast::scale, unlocked());
  m.def("centralize", &ssl_fast::centralize, unlocked());
  m.def("sam_ascend", &ssl_fast::sam_ascend, unlocked());
  m.def("sam_sgd", &ssl_fast::sam_sgd, unlocked());
  m.def("sam_adamw", &ssl_fast::sam_adamw, unlocked());
  m.def("lamb_step", &ssl_fast::lamb_step, unlocked());
  m.def("crop_boxes", &ssl_fast::crop_boxes, unlocked());
  m.def("augment", taking_tensors(&ssl_fast::augment), unlocked());
  m.def("uniforms", taking_tensors(&ssl_fast::uniforms), unlocked());
}
