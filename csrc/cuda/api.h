// The host functions of the CUDA kernels, in namespace cuda. What they compute stands at their namesakes in ops.h.
#pragma once

#include "ops.h"

namespace ssl_fast {

namespace cuda {
void ema_update(const Addresses& targets, const Addresses& sources, const Sizes& sizes, int target_dtype,
                int source_dtype, double momentum, int device, Address stream);
// Bytes that lars_step needs at `workspace`.
std::int64_t lars_workspace(const Sizes& sizes);
// lr_tensor: address of a float64 on the device that replaces lr, or 0.
void lars_step(const Addresses& params, const Addresses& grads, const Addresses& buffers, const Sizes& sizes,
               const std::vector<bool>& adapt, int dtype, double lr, Address lr_tensor, double momentum,
               double weight_decay, double trust_coefficient, double eps, bool nesterov, bool clip, Address workspace,
               int device, Address stream);
void lookahead_update(const Addresses& fast, const Addresses& slow, const Sizes& sizes, int dtype, double alpha,
                      int device, Address stream);
// Bytes that square_sum needs at `workspace`; the sum, a float64, is written to `sum`.
std::int64_t square_sum_workspace(const Sizes& sizes);
void square_sum(const Addresses& tensors, const Addresses& weights, const Sizes& sizes, int dtype, Address workspace,
                Address sum, int device, Address stream);
// factor: address of a float64 on the device. Nothing is written where it is 1.
void scale(const Addresses& tensors, const Sizes& sizes, int dtype, Address factor, int device, Address stream);
void centralize(const Addresses& tensors, const Sizes& sizes, const Sizes& rows, int dtype, int device, Address stream);
// factor: address of a float64 on the device.
void sam_ascend(const Addresses& params, const Addresses& grads, const Addresses& saved, const Sizes& sizes, int dtype,
                Address factor, bool adaptive, int device, Address stream);
// lr_tensor: address of a float64 on the device that replaces lr, or 0.
void sam_sgd(const Addresses& params, const Addresses& saved, const Addresses& grads, const Addresses& buffers,
             const Sizes& sizes, int dtype, double lr, Address lr_tensor, double momentum, double weight_decay,
             bool nesterov, int device, Address stream);
void sam_adamw(const Addresses& params, const Addresses& saved, const Addresses& grads, const Addresses& first,
               const Addresses& second, const Sizes& sizes, int dtype, double lr, Address lr_tensor, double beta1,
               double beta2, double eps, double weight_decay, double step, int device, Address stream);
// Bytes that lamb_step needs at `workspace`; step: address of a float64 on the device, from 1.
std::int64_t lamb_workspace(const Sizes& sizes);
void lamb_step(const Addresses& params, const Addresses& grads, const Addresses& first, const Addresses& second,
               const Sizes& sizes, const std::vector<bool>& adapt, int dtype, double lr, Address lr_tensor,
               double beta1, double beta2, double eps, double weight_decay, bool bias_correction, bool clip,
               Address step, Address workspace, int device, Address stream);
// Bytes that augment needs at `workspace`, whatever the number of images beyond what they hold.
std::int64_t augment_workspace(Address host_table, const Sizes& sizes, const std::vector<bool>& bicubic,
                               const Sizes& blur_radii, std::int64_t N, std::int64_t C);
// All addresses on the device but host_table. At most 64 views; normalisation: the output is x * first + second.
void augment(Address images,         // [N] addresses of uint8 [H, W, C], contiguous
             Address extents,        // [N, 2] int64 H, W
             Address table,          // [N, V, 17]
             Address host_table,     // the same, on the host
             Address normalisation,  // [V, 2, C] float32
             const Addresses& outs, const Sizes& sizes, const std::vector<bool>& bicubic, const Sizes& operations,
             const Sizes& blur_radii, const std::vector<double>& thresholds, std::int64_t N, std::int64_t C, int dtype,
             bool channels_last, Address workspace, int device, Address stream);
}  // namespace cuda

}  // namespace ssl_fast
