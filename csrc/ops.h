// Every host function of the kernels: the C++ API, of CUDA's in cuda/api.h. Knows no torch: addresses, sizes, streams.
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

// NT-Xent's loss and log of the total normaliser sum_{j != i} exp(s_ij), of rows [begin, end) = R rows. With classes,
// SupCon's. Decoupled: the positive is in no normaliser (DCL). log_l is infinite for a row that has no loss.
void nt_xent_forward(Address x,  // [N, D]
                     int dtype,
                     Address positive,  // [N] int64, each another row; with classes the row itself, but of a pair
                     Address classes,   // [N] int64 in [0, N), -1 for rows that take no part; or 0: pairs alone
                     int64_t N, int64_t D, int64_t begin, int64_t end, double inv_temperature, bool normalize,
                     bool decoupled,
                     Address loss,   // [R]
                     Address log_l,  // [R]
                     int threads);
// Gradient of sum_i coef_i loss_i (i over all rows) with respect to x[begin:end], and <z_i, dz_i>.
void nt_xent_backward(Address x,  // [N, D]
                      int dtype,
                      Address positive,  // [N] int64
                      Address classes,   // [N] int64 or 0
                      Address coef,      // [N], in the dtype of the outputs
                      Address log_l,     // [N], in the dtype of the outputs
                      int64_t N, int64_t D, int64_t begin, int64_t end, double inv_temperature, bool normalize,
                      bool decoupled,
                      Address dx,   // [R, D]
                      Address zdz,  // [R]
                      int threads);
// The same losses of all rows (one number at least) in one call: mean or sum and, unless dfirst is 0, its gradients.
void self_contrast(Address first,   // [M, D] the views one after the other; or [M / 2, D], the first of two views
                   Address second,  // [M / 2, D] the second; or 0
                   int dtype, int64_t M, int64_t D, int64_t num_views,
                   Address labels,   // [M] int64, one class for each label; or 0: one for each sample
                   int64_t ignored,  // rows of this label take no part
                   Address weight,   // [M / num_views], in the dtype of the outputs, or 0
                   double inv_temperature, bool normalize, bool decoupled, bool average,
                   Address value,         // []
                   Address dfirst,        // of the shape of first, or 0
                   Address dsecond,       // of the shape of second
                   Address dweight,       // [M / num_views] or 0
                   Address dtemperature,  // [] or 0
                   int threads);
// InfoNCE's loss against a queue and, unless dinv is 0 (rows without elements have no address), the gradients of each
// row's own loss.
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
// The same of all rows (one number at least): mean or sum and, unless dq is 0, its gradients.
void info_nce(Address q, Address k, int dtype, Address queue, int queue_dtype, int64_t B, int64_t K, int64_t D,
              double inv_temperature, bool normalize,
              Address weight,  // [B], in the dtype of the outputs, or 0
              bool average,
              Address value,         // []
              Address dq,            // [B, D] or 0
              Address dk,            // [B, D]
              Address dweight,       // [B] or 0
              Address dtemperature,  // [] or 0
              int threads);
// DINO, iBOT, SwAV: each sample's loss and, unless 0, the gradients of sum_n coef_n loss_n. bias, coef and outputs are
// float64 where in_float64, else float32. Equations: csrc/cpu/prototypes.cpp.
void prototypes_forward(Address student,  // [S, N, D]
                        int student_dtype,
                        Address weight,  // [K, D]
                        int weight_dtype,
                        Address teacher,  // [T, N, D]
                        int teacher_dtype,
                        Address weight_teacher,  // [K, D]
                        int weight_teacher_dtype, int64_t S, int64_t T, int64_t N, int64_t K, int64_t D,
                        Address bias,  // [T, K] or 0
                        Address coef,  // [N] or 0
                        double inv_student, double inv_teacher, bool skip_same,
                        Address loss,      // [N]
                        Address dstudent,  // [S, N, D] or 0
                        Address dweight,   // [K, D] or 0
                        bool in_float64, int threads);
// The mean (average) or sum over the samples of the same, over `count` pairs of views, and, unless 0, its gradients.
void prototypes(Address student, int student_dtype, Address weight, int weight_dtype, Address teacher,
                int teacher_dtype, Address weight_teacher, int weight_teacher_dtype, int64_t S, int64_t T, int64_t N,
                int64_t K, int64_t D, Address bias,
                Address sample_weight,  // [N] or 0
                bool average,
                double total,  // what a mean divides by; negative: the sum of the weights
                double count, double inv_student, double inv_teacher, bool skip_same,
                Address value,     // []
                Address dstudent,  // [S, N, D] or 0
                Address dweight,   // [K, D] or 0
                bool in_float64, int threads);
// The same two from logits.
void prototype_logits_forward(Address student,  // [S, N, K]
                              int student_dtype,
                              Address teacher,  // [T, N, K]
                              int teacher_dtype, int64_t S, int64_t T, int64_t N, int64_t K,
                              Address bias,  // [T, K] or 0
                              Address coef,  // [N] or 0
                              double inv_student, double inv_teacher, bool skip_same,
                              Address loss,      // [N]
                              Address dstudent,  // [S, N, K] or 0
                              bool in_float64, int threads);
void prototype_logits(Address student, int student_dtype, Address teacher, int teacher_dtype, int64_t S, int64_t T,
                      int64_t N, int64_t K, Address bias,
                      Address weight,  // [N] or 0
                      bool average, double total, double count, double inv_student, double inv_teacher, bool skip_same,
                      Address value,     // []
                      Address dstudent,  // [S, N, K] or 0
                      bool in_float64, int threads);
// 1 / (true entries of its row of masks) for each of the M true entries in their order; returns how many there are, and
// writes nothing where that is not M.
int64_t token_weights(Address masks,  // [B, P] bool
                      int64_t B, int64_t P, int64_t M,
                      Address weights,  // [M]
                      bool in_float64);
// log sum_m exp(<terms_m, columns_r> inv_temperature + bias_m)
void prototypes_log_sums(Address terms,  // [M, D]
                         int terms_dtype,
                         Address columns,  // [R, D]
                         int columns_dtype,
                         Address bias,  // [M] or 0
                         int64_t M, int64_t R, int64_t D, double inv_temperature,
                         Address logs,  // [R]
                         bool in_float64, int threads);
// Sinkhorn-Knopp over logits [N, K]; log_v, logs and q are float64 where they are, else float32. With log_v
// log sum_n exp(x_nk inv_temperature) / sum_j exp(x_nj inv_temperature + log_v_j), without it of the numerators alone.
void sinkhorn_column_logs(Address logits, int dtype, int64_t N, int64_t K, double inv_temperature,
                          Address log_v,  // [K] or 0
                          Address logs,   // [K]
                          int threads);
// Minus the former, `iterations` times over, the first without log_v.
void sinkhorn_balance(Address logits, int dtype, int64_t N, int64_t K, double inv_temperature, int iterations,
                      Address log_v,  // [K]
                      int threads);
// The softmax over k of x_n inv_temperature + log_v.
void sinkhorn_assignments(Address logits, int dtype, int64_t N, int64_t K, double inv_temperature,
                          Address log_v,  // [K]
                          Address q,      // [N, K]
                          int threads);
// BYOL: squared distance of the rows, of unit length where normalize; outputs are float64 where p is, else float32.
void byol_forward(Address p,  // [N, D]
                  int p_dtype,
                  Address z,  // [N, D]
                  int z_dtype, int64_t N, int64_t D, bool normalize,
                  Address loss,  // [N]
                  Address dp,    // [N, D] each row's own gradient; or 0
                  int threads);
// Mean or sum over the rows of factor distance + offset and, unless dp is 0, its gradients.
void byol(Address p, int p_dtype, Address z, int z_dtype, int64_t N, int64_t D, bool normalize, double factor,
          double offset,
          Address weight,  // [N], in the dtype of the outputs, or 0
          bool average,
          Address value,    // []
          Address dp,       // [N, D] or 0
          Address dweight,  // [N] or 0
          int threads);
// Barlow Twins, VICReg, of fewer rows than columns and one row at least: the loss and, unless dz1 is 0, its gradients.
void barlow_twins(Address z1,  // [N, D]
                  Address z2,  // [N, D]
                  int dtype, int64_t N, int64_t D, double lambda, double eps,
                  Address value,  // []
                  Address dz1,    // [N, D] or 0
                  Address dz2,    // [N, D]
                  int threads);
void vicreg(Address z1, Address z2, int dtype, int64_t N, int64_t D, double invariance, double variance,
            double covariance, double gamma, double eps, Address value, Address dz1, Address dz2, int threads);
// KoLeo: for each of the rows [begin, end) the other row with the highest dot product, the first of equals. M >= 2.
void koleo_neighbours(Address z,  // [M, D] float32 or float64
                      int dtype, int64_t M, int64_t D, int64_t begin, int64_t end,
                      Address found,  // [end - begin] int64
                      int threads);

// --- Retrieval ---

// The k best of the gallery for each query, by score and then by index. metric: 0 cosine, 1 dot, 2 l2 (the smallest).
void knn_topk(Address queries,  // [Q, D]
              int query_dtype,
              Address gallery,  // [N, D]
              int gallery_dtype, int64_t Q, int64_t N, int64_t D, int64_t k, int metric,
              Address values,   // [Q, k] float64 where an input is, else float32
              Address indices,  // [Q, k] int64
              int threads);

// Margin softmax (csrc/cpu/margin_softmax.cpp): log-normalisers of the negatives and, unless dx, dweight and mean are
// all 0 (some of them may be empty), the gradients of sum_i row_weight_i loss_i with respect to x, weight and (mean,
// less the target's part) the scale. lse_given: lse is read, not written; row_weight and slope then hold the weight of
// each row's negatives and of its target's cosine.
void margin_softmax(Address x,  // [N, D]
                    int x_dtype,
                    Address weight,  // [C, S, D]
                    int weight_dtype,
                    Address target,  // [N] int64; a number outside [0, C) is no target
                    int64_t N, int64_t C, int64_t S, int64_t D, double scale, double hardness, bool normalize,
                    bool lse_given,
                    Address threshold,   // [N] or 0: cosines above it are hard
                    Address phi,         // [N] the targets' logits over scale
                    Address slope,       // [N] their derivatives
                    Address row_weight,  // [N]
                    Address lse,         // [N]
                    Address dx,          // [N, D] or 0
                    Address dweight,     // [C, S, D]
                    Address mean,        // [N]
                    int threads);

// Labels as places among C classes, `left_out` for the ignored; the first row whose label is neither, or -1.
int64_t margin_targets(Address labels,  // [N] int64
                       int64_t N, int64_t C, int64_t ignored, int64_t left_out,
                       Address target);  // [N] int64
// AdaFace's m2 and m3 of each row from its length, float64 where x is, else float32.
void adaface_margins(Address x,  // [N, D]
                     int dtype, int64_t N, int64_t D, double norm_mean, double norm_std, double margin,
                     double concentration,
                     Address row_margins,  // [2, N]
                     int threads);
// A loss with a margin over all samples and classes (one number at least each): mean or sum over the rows whose target
// is not negative and, unless dx is 0, its gradients. Equations: ssl_fast/ops/margins.py.
void margin_loss(Address x,  // [N, D]
                 int x_dtype,
                 Address weight,  // [C, S, D]
                 int weight_dtype,
                 Address target,  // [N] int64
                 int64_t N, int64_t C, int64_t S, int64_t D, double scale, bool normalize, double m1, double m2,
                 double m3, bool monotone, bool exact,
                 Address row_margins,  // [2, N] m2 and m3 of each row, or 0
                 bool hard, double hardness, bool average,
                 Address value,    // []
                 Address dx,       // [N, D] or 0
                 Address dweight,  // [C, S, D]
                 Address dscale,   // [] or 0
                 int threads);

// --- Two towers: image i with text i, both [M, D]; R = end - begin of them are wanted. Equations: the .cpp ---

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
// The same of all pairs (one number at least): mean or sum over pairs and sides and, unless dimage is 0, its gradients.
void clip_loss(Address image, Address text, int dtype, int64_t M, int64_t D, double scale, bool normalize, int sides,
               Address weight,  // [M], in the dtype of the outputs, or 0
               bool average,
               Address value,    // []
               Address dimage,   // [M, D] or 0
               Address dtext,    // [M, D]
               Address dweight,  // [M] or 0
               Address dscale,   // [] or 0
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
// The same of all pairs (one number at least): mean or sum over the images and, unless dimage is 0, its gradients.
void siglip_loss(Address image, Address text, int dtype, int64_t M, int64_t D, double scale, double bias,
                 bool normalize,
                 Address weight,  // [M], in the dtype of the outputs, or 0
                 bool average,
                 Address value,    // []
                 Address dimage,   // [M, D] or 0
                 Address dtext,    // [M, D]
                 Address dweight,  // [M] or 0
                 Address dscale,   // [] or 0
                 Address dbias,    // [] or 0
                 int threads);

// --- Multi-tensor updates (csrc/{cpu,cuda}/{multi_tensor,gradients,sam,lamb}) ---
// All tensors of a list in one call. Tensor i is flat memory of sizes[i] elements, and the tensors i of all lists are
// laid out alike. Equations: ssl_fast/ops/<the same name>.py. dtype: a DType, the same for all tensors of a list.

using Addresses = std::vector<Address>;
using Sizes = std::vector<std::int64_t>;

// targets[i] [sizes[i]] <- momentum targets[i] + (1 - momentum) sources[i]
void ema_update(const Addresses& targets, const Addresses& sources, const Sizes& sizes, int target_dtype,
                int source_dtype, double momentum, int threads);
// params[i], buffers[i] [sizes[i]] <- one LARS step; buffers are float64 where dtype is, else float32.
void lars_step(const Addresses& params, const Addresses& grads, const Addresses& buffers, const Sizes& sizes,
               const std::vector<bool>& adapt, int dtype, double lr, double momentum, double weight_decay,
               double trust_coefficient, double eps, bool nesterov, bool clip, int threads);

// slow[i], fast[i] [sizes[i]] <- slow + alpha (fast - slow), both
void lookahead_update(const Addresses& fast, const Addresses& slow, const Sizes& sizes, int dtype, double alpha,
                      int threads);
// Sum of the squares of all tensors, or of weights[i] tensors[i] element by element; weights is empty or as long.
double square_sum(const Addresses& tensors, const Addresses& weights, const Sizes& sizes, int dtype, int threads);
// tensors[i] [sizes[i]] <- factor tensors[i]
void scale(const Addresses& tensors, const Sizes& sizes, int dtype, double factor, int threads);
// tensors[i] [rows[i], sizes[i] / rows[i]] <- each row less its mean
void centralize(const Addresses& tensors, const Sizes& sizes, const Sizes& rows, int dtype, int threads);
// saved[i] [sizes[i]] <- params[i]; params[i] <- params[i] + factor grads[i] (params[i]^2 grads[i] where adaptive)
void sam_ascend(const Addresses& params, const Addresses& grads, const Addresses& saved, const Sizes& sizes, int dtype,
                double factor, bool adaptive, int threads);
// params[i] [sizes[i]] <- one step of SGD from saved[i]; buffers[i] (momentum, the same dtype) may be an empty list.
void sam_sgd(const Addresses& params, const Addresses& saved, const Addresses& grads, const Addresses& buffers,
             const Sizes& sizes, int dtype, double lr, double momentum, double weight_decay, bool nesterov,
             int threads);
// params[i] [sizes[i]] <- one step of AdamW from saved[i]; first and second moments of the same dtype; step from 1.
void sam_adamw(const Addresses& params, const Addresses& saved, const Addresses& grads, const Addresses& first,
               const Addresses& second, const Sizes& sizes, int dtype, double lr, double beta1, double beta2,
               double eps, double weight_decay, double step, int threads);
// params[i], first[i], second[i] [sizes[i]] <- one LAMB step; moments are float64 where dtype is, else float32.
void lamb_step(const Addresses& params, const Addresses& grads, const Addresses& first, const Addresses& second,
               const Sizes& sizes, const std::vector<bool>& adapt, int dtype, double lr, double beta1, double beta2,
               double eps, double weight_decay, bool bias_correction, bool clip, double step, int threads);

// --- Augmented views (csrc/cpu/{augment,crop_boxes,philox}.cpp) ---

// `count` random numbers in [0, 1) for each sample, functions of (seed, epoch, purpose, sample):
// ssl_fast/data/philox.py.
void uniforms(Address index,  // [N] int64
              std::int64_t N, std::int64_t count, std::uint32_t epoch, std::uint32_t purpose, std::uint64_t seed,
              Address numbers);  // [N, count] float64

// The crops of ssl_fast/data/crops.py: of each sample's A attempts the first whose box fits, in pixels; none: extent 0.
void crop_boxes(Address numbers,  // rows of `stride` float64 in [0, 1): a share of the area at 2 a, the corner at 2 A
                Address ratios,   // [N, A] float64 width / height of each attempt
                Address sizes,    // [N, 2] float64 H, W
                std::int64_t N, std::int64_t stride, std::int64_t attempts, double low, double high,
                Address boxes);  // [N, 4] float64 top, left, height, width

// All V views of N decoded images of C channels: crop, antialiased resize, flip, colour jitter, grayscale, blur,
// solarisation, normalisation (ssl_fast/data/engine_torchvision.py is the reference).
void augment(Address images,                         // [N] addresses of uint8 [H, W, C], contiguous
             Address extents,                        // [N, 2] int64 H, W
             Address table,                          // [N, V, 17] float32, the columns of ssl_fast/data/views.py
             const Addresses& outs,                  // V tensors [N, C, S, S], contiguous or channels last
             const Sizes& sizes,                     // [V] S
             const std::vector<bool>& bicubic,       // [V] or else bilinear
             const Sizes& operations,                // [V] bit i: operation i of the colour jitter is done when drawn
             const Sizes& blur_radii,                // [V] taps beside the centre, at most 256
             const std::vector<double>& thresholds,  // [V] of solarisation
             const std::vector<double>& mean,        // [V, C]
             const std::vector<double>& std,         // [V, C]
             std::int64_t N, std::int64_t C,
             int dtype,  // of the outputs: float32, bfloat16 or float16
             bool channels_last, int threads);

}  // namespace ssl_fast
