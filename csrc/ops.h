// Every host function of the kernels: the C++ API. Knows no torch: addresses, sizes, streams.
// Python validates, allocates and passes data_ptr()s; the kernels check only what they alone can know.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace ssl_fast {

using Address = std::uintptr_t;  // of a tensor's first element

enum class DType : int { float32 = 0, float64 = 1, bfloat16 = 2, float16 = 3 };

// --- CPU: instruction sets (csrc/cpu/isa.cpp) ---

// Instruction set the kernels use: "avx512", "avx2" or "generic"; SSL_FAST_ISA forces one.
std::string isa();
// Forces one for this process; std::invalid_argument where the processor or the build has it not.
void set_isa(const std::string& name);

// --- Contrastive losses. dtype: DType of x (q, k). Outputs are float32, or float64 for float64 inputs. All contiguous.
// ---

// NT-Xent's loss and log of the total normaliser sum_{j != i} exp(s_ij), of rows [begin, end) = R rows.
void nt_xent_forward(Address x,  // [N, D]
                     int dtype,
                     Address positive,  // [N] int64, each another row
                     int64_t N, int64_t D, int64_t begin, int64_t end, double inv_temperature, bool normalize,
                     Address loss,   // [R]
                     Address log_l,  // [R]
                     int threads);
// Gradient of sum_i coef_i loss_i (i over all rows) with respect to x[begin:end], and <z_i, dz_i>.
void nt_xent_backward(Address x,  // [N, D]
                      int dtype,
                      Address positive,  // [N] int64
                      Address coef,      // [N], in the dtype of the outputs
                      Address log_l,     // [N], in the dtype of the outputs
                      int64_t N, int64_t D, int64_t begin, int64_t end, double inv_temperature, bool normalize,
                      Address dx,   // [R, D]
                      Address zdz,  // [R]
                      int threads);
// InfoNCE's loss against a queue and, unless dq is 0, the gradients of each row's own loss.
void info_nce_forward(Address q,  // [B, D]
                      Address k,  // [B, D]
                      int dtype,
                      Address queue,  // [K, D]
                      int queue_dtype, int64_t B, int64_t K, int64_t D, double inv_temperature, bool normalize,
                      Address loss,  // [B]
                      Address dq,    // [B, D] or 0
                      Address dk,    // [B, D]
                      Address dinv,  // [B] d loss_i / d inv_temperature
                      int threads);

// --- Pairs of two towers, image i with text i, both [M, D]; R = end - begin of them are wanted. Equations: the .cpp
// ---

// CLIP's loss and log of the whole normaliser, image to text and (sides = 2) text to image.
void clip_loss_forward(Address image, Address text, int dtype, int64_t M, int64_t D, int64_t begin, int64_t end,
                       double scale, bool normalize, int sides,
                       Address loss,   // [sides, R]
                       Address log_l,  // [sides, R] float64
                       int threads);
// Gradient of sum coef loss (over all M pairs) with respect to the wanted rows, and their images' shares of d/dscale.
void clip_loss_backward(Address image, Address text, int dtype,
                        Address coef,   // [sides, M], in the dtype of the outputs
                        Address log_l,  // [sides, M] float64
                        int64_t M, int64_t D, int64_t begin, int64_t end, double scale, bool normalize, int sides,
                        Address dimage,  // [R, D]
                        Address dtext,   // [R, D]
                        Address dscale,  // [R]
                        int threads);
// SigLIP's loss of the wanted images and, unless coef is 0, the gradients of sum_i coef_i loss_i over all images.
void siglip_loss_forward(Address image, Address text, int dtype,
                         Address coef,  // [M], in the dtype of the outputs, or 0
                         int64_t M, int64_t D, int64_t begin, int64_t end, double scale, double bias, bool normalize,
                         Address loss,    // [R]
                         Address dimage,  // [R, D]
                         Address dtext,   // [R, D]
                         Address dscale,  // [R] shares of d/dscale
                         Address dbias,   // [R] shares of d/dbias
                         int threads);

// --- Multi-tensor updates (csrc/cpu/multi_tensor.cpp, csrc/cuda/multi_tensor.cu) ---
// All tensors of a list in one call. Tensor i is flat memory of sizes[i] elements, and the tensors i of all lists are
// laid out alike. Equations: ssl_fast/ops/multi_tensor.py. dtype: a DType, the same for all tensors of a list.

using Addresses = std::vector<Address>;
using Sizes = std::vector<std::int64_t>;

// targets[i] [sizes[i]] <- momentum targets[i] + (1 - momentum) sources[i]
void ema_update(const Addresses& targets, const Addresses& sources, const Sizes& sizes, int target_dtype,
                int source_dtype, double momentum, int threads);
// params[i], buffers[i] [sizes[i]] <- one LARS step; buffers are float64 where dtype is, else float32.
void lars_step(const Addresses& params, const Addresses& grads, const Addresses& buffers, const Sizes& sizes,
               const std::vector<bool>& adapt, int dtype, double lr, double momentum, double weight_decay,
               double trust_coefficient, double eps, bool nesterov, bool clip, int threads);

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
}  // namespace cuda

}  // namespace ssl_fast
