// The two passes of NT-Xent, SupCon and DCL over loaded rows: nt_xent_forward.cpp and nt_xent_backward.cpp.
#pragma once

#include "cpu/contrast.h"

namespace ssl_fast {

// loss and log_l [R] of the wanted rows.
template <typename T>
void contrast_losses(const Contrast<T>& c, bool decoupled, T* loss, T* log_l, int threads);

// Gradient of sum_i coef_i loss_i with respect to the wanted rows, [R, D] in one or two parts, and <z_i, dz_i> [R].
template <typename T>
void contrast_gradients(const Contrast<T>& c, const T* coef, const T* log_l, bool decoupled, bool normalize,
                        const Parts& dx, T* zdz, int threads);

}  // namespace ssl_fast
