// Arithmetic of LAMB (ssl_fast/ops/lamb.py has the equations), shared by CPU and CUDA.
#pragma once

#include "core/multi_tensor.h"

namespace ssl_fast {

// Numbers of one LAMB step in the type it computes in: float, or double for double parameters.
template <typename A>
struct LambNumbers {
  A lr, rest1, beta2, rest2, eps, weight_decay;  // rest: 1 - beta, which float would round off at 0.999
  A correction1, correction2_root;               // 1 - beta1^step and the root of 1 - beta2^step, or 1
  bool clip;
};

// 1 - beta^step, or 1 where moments are not corrected.
SSL_FAST_HD double moment_correction(double beta, double step, bool corrected) {
  return corrected ? 1.0 - pow(beta, step) : 1.0;
}

template <typename A>
SSL_FAST_HD void lamb_moments(A g, A& m, A& v, const LambNumbers<A>& n) {
  m = m + n.rest1 * (g - m);
  v = n.beta2 * v + n.rest2 * g * g;
}

// u, from the new moments; decay is 0 for a tensor that is not adapted.
template <typename A>
SSL_FAST_HD A lamb_direction(A p, A m, A v, A decay, const LambNumbers<A>& n) {
  return (m / n.correction1) / (sqrt(v) / n.correction2_root + n.eps) + decay * p;
}

// r from the sums of squares of a parameter and its direction.
template <typename A>
SSL_FAST_HD A lamb_ratio(double p_squares, double u_squares, const LambNumbers<A>& n) {
  if (p_squares == 0 || u_squares == 0) return A(1);
  const A ratio = A(sqrt(p_squares) / sqrt(u_squares));
  return n.clip && ratio > A(1) ? A(1) : ratio;
}

}  // namespace ssl_fast
