// Arithmetic of the whole-model updates (ssl_fast/ops/multi_tensor.py has the equations), shared by CPU and CUDA.
#pragma once

#include <cmath>

#include "core/host_device.h"

namespace ssl_fast {

// Numbers of one LARS step in the type it computes in: float, or double for double parameters.
template <typename A>
struct LarsNumbers {
  A lr, momentum, weight_decay, trust_coefficient, eps;
  bool nesterov, clip;
};

// t + w (s - t), in the form that is exact at both ends; w is the same for all elements, so nothing diverges.
template <typename A>
SSL_FAST_HD A lerp(A t, A s, A w) {
  return w < A(0.5) ? t + w * (s - t) : s - (A(1) - w) * (s - t);
}

// r from the sums of squares of a parameter and its gradient.
template <typename A>
SSL_FAST_HD A trust_ratio(double p_squares, double g_squares, const LarsNumbers<A>& n) {
  const A p_norm = A(sqrt(p_squares)), g_norm = A(sqrt(g_squares));
  if (!(p_norm > A(0)) || !(g_norm > A(0))) return A(1);
  const A ratio = n.trust_coefficient * p_norm / (g_norm + n.weight_decay * p_norm + n.eps);
  return n.clip && ratio > n.lr ? A(1) : n.clip ? ratio / n.lr : ratio;
}

// One element: v and p are replaced; decay is 0 and ratio 1 for a tensor that is not adapted.
template <typename A>
SSL_FAST_HD void lars_element(A& p, A g, A& v, A ratio, A decay, const LarsNumbers<A>& n) {
  const A update = ratio * (g + decay * p);
  v = n.momentum * v + update;
  p -= n.lr * (n.nesterov ? update + n.momentum * v : v);
}

}  // namespace ssl_fast
