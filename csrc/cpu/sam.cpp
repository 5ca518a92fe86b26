// SAM on a CPU: to the perturbed parameters and, with the step of SGD or AdamW, back.
#include "cpu/isa/sam.h"

#include <cmath>

#include "cpu/chunks.h"

namespace ssl_fast {
namespace {

const SamKernels& kernels() { return SSL_FAST_PICK(sam); }

}  // namespace

void sam_ascend(const Addresses& params, const Addresses& grads, const Addresses& saved, const Sizes& sizes, int dtype,
                double factor, bool adaptive, int threads) {
  const std::int64_t element = element_size(dtype);
  const SamKernels& kernel = kernels();
  for_each_chunk(sizes, threads, [&](const Chunk& c) {
    const std::int64_t offset = c.begin * element;
    kernel.ascend(at(params[c.tensor], offset), at(grads[c.tensor], offset), at(saved[c.tensor], offset), DType(dtype),
                  c.size, factor, adaptive);
  });
}

void sam_sgd(const Addresses& params, const Addresses& saved, const Addresses& grads, const Addresses& buffers,
             const Sizes& sizes, int dtype, double lr, double momentum, double weight_decay, bool nesterov,
             int threads) {
  const SgdNumbers<double> numbers{lr, momentum, weight_decay, nesterov};
  const std::int64_t element = element_size(dtype);
  const SamKernels& kernel = kernels();
  for_each_chunk(sizes, threads, [&](const Chunk& c) {
    const std::int64_t offset = c.begin * element;
    void* buffer = buffers.empty() ? nullptr : at(buffers[c.tensor], offset);
    kernel.sgd(at(params[c.tensor], offset), at(saved[c.tensor], offset), at(grads[c.tensor], offset), buffer,
               DType(dtype), c.size, numbers);
  });
}

void sam_adamw(const Addresses& params, const Addresses& saved, const Addresses& grads, const Addresses& first,
               const Addresses& second, const Sizes& sizes, int dtype, double lr, double beta1, double beta2,
               double eps, double weight_decay, double step, int threads) {
  const AdamWNumbers<double> numbers{lr,
                                     1 - beta1,
                                     beta2,
                                     1 - beta2,
                                     eps,
                                     weight_decay,
                                     bias_correction(beta1, step),
                                     std::sqrt(bias_correction(beta2, step))};
  const std::int64_t element = element_size(dtype);
  const SamKernels& kernel = kernels();
  for_each_chunk(sizes, threads, [&](const Chunk& c) {
    const std::int64_t offset = c.begin * element;
    kernel.adamw(at(params[c.tensor], offset), at(saved[c.tensor], offset), at(grads[c.tensor], offset),
                 at(first[c.tensor], offset), at(second[c.tensor], offset), DType(dtype), c.size, numbers);
  });
}

}  // namespace ssl_fast
