// Arithmetic of SAM (ssl_fast/ops/sam.py has the equations), shared by CPU and CUDA.
#pragma once

#include "core/multi_tensor.h"

namespace ssl_fast {

// Numbers of one step of SGD or AdamW in the type it computes in: float, or double for double parameters.
template <typename A>
struct SgdNumbers {
  A lr, momentum, weight_decay;
  bool nesterov;
};

template <typename A>
struct AdamWNumbers {
  A lr, rest1, beta2, rest2, eps, weight_decay;  // rest: 1 - beta, which float would round off at 0.999
  A correction1, correction2_root;               // 1 - beta1^step and the root of 1 - beta2^step
};

// beta^step as the double that every implementation uses.
SSL_FAST_HD double bias_correction(double beta, double step) { return 1.0 - pow(beta, step); }

template <typename A>
SSL_FAST_HD A ascended(A p, A g, A factor, bool adaptive) {
  return p + factor * (adaptive ? p * p * g : g);
}

// The parameter after one step from p; the momentum v is replaced.
template <typename A>
SSL_FAST_HD A sgd_element(A p, A g, A& v, const SgdNumbers<A>& n) {
  const A decayed = g + n.weight_decay * p;
  v = n.momentum * v + decayed;
  return p - n.lr * (n.nesterov ? decayed + n.momentum * v : v);
}

// The parameter after one step from p; the moments m and v are replaced.
template <typename A>
SSL_FAST_HD A adamw_element(A p, A g, A& m, A& v, const AdamWNumbers<A>& n) {
  m = m + n.rest1 * (g - m);
  v = n.beta2 * v + n.rest2 * g * g;
  const A direction = (m / n.correction1) / (sqrt(v) / n.correction2_root + n.eps);
  return p * (A(1) - n.lr * n.weight_decay) - n.lr * direction;
}

}  // namespace ssl_fast
