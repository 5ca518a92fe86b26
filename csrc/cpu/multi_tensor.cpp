// Whole-model updates on a CPU. Tensors are cut into chunks of one size, which are the tasks of the threads and the
// terms of every sum: the bits do not depend on the number of threads.
#include "cpu/isa/multi_tensor.h"

#include "cpu/chunks.h"
#include "cpu/parallel.h"
#include "ops.h"

namespace ssl_fast {
namespace {

const MultiTensorKernels& kernels() { return SSL_FAST_PICK(multi_tensor); }

}  // namespace

void ema_update(const Addresses& targets, const Addresses& sources, const Sizes& sizes, int target_dtype,
                int source_dtype, double momentum, int threads) {
  const std::int64_t t_size = element_size(target_dtype), s_size = element_size(source_dtype);
  const std::vector<Chunk> chunks = cut(sizes, 0, sizes.size());
  const MultiTensorKernels& kernel = kernels();
  parallel_for(threads, std::int64_t(chunks.size()), [&](std::int64_t task, int) {
    const Chunk& c = chunks[task];
    kernel.ema(at(targets[c.tensor], c.begin * t_size), DType(target_dtype), at(sources[c.tensor], c.begin * s_size),
               DType(source_dtype), c.size, 1 - momentum);
  });
}

void lars_step(const Addresses& params, const Addresses& grads, const Addresses& buffers, const Sizes& sizes,
               const std::vector<bool>& adapt, int dtype, double lr, double momentum, double weight_decay,
               double trust_coefficient, double eps, bool nesterov, bool clip, int threads) {
  const LarsNumbers<double> numbers{lr, momentum, weight_decay, trust_coefficient, eps, nesterov, clip};
  const std::int64_t element = element_size(dtype), buffer_element = std::max<std::int64_t>(4, element);
  const MultiTensorKernels& kernel = kernels();
  std::vector<double> ratios(sizes.size(), 1.0);
  for (std::size_t first = 0, last; first < sizes.size(); first = last) {
    last = cached_run(sizes, first, 2 * element);
    const std::vector<Chunk> chunks = cut(sizes, first, last);
    std::vector<Squares> partials(chunks.size(), Squares{0, 0});
    parallel_for(threads, std::int64_t(chunks.size()), [&](std::int64_t task, int) {
      const Chunk& c = chunks[task];
      if (!adapt[c.tensor]) return;
      partials[task] = kernel.squares(at(params[c.tensor], c.begin * element), at(grads[c.tensor], c.begin * element),
                                      DType(dtype), c.size);
    });
    for (std::size_t k = 0; k < chunks.size();) {
      const std::size_t tensor = chunks[k].tensor;
      Squares sum{0, 0};
      for (; k < chunks.size() && chunks[k].tensor == tensor; ++k) {
        sum.p += partials[k].p;
        sum.g += partials[k].g;
      }
      if (adapt[tensor]) ratios[tensor] = trust_ratio(sum.p, sum.g, numbers);
    }
    parallel_for(threads, std::int64_t(chunks.size()), [&](std::int64_t task, int) {
      const Chunk& c = chunks[chunks.size() - 1 - task];  // what the sums read last is still in the cache
      kernel.lars(at(params[c.tensor], c.begin * element), at(grads[c.tensor], c.begin * element),
                  at(buffers[c.tensor], c.begin * buffer_element), DType(dtype), c.size, ratios[c.tensor],
                  adapt[c.tensor] ? weight_decay : 0.0, numbers);
    });
  }
}

void lookahead_update(const Addresses& fast, const Addresses& slow, const Sizes& sizes, int dtype, double alpha,
                      int threads) {
  const std::int64_t element = element_size(dtype);
  const MultiTensorKernels& kernel = kernels();
  for_each_chunk(sizes, threads, [&](const Chunk& c) {
    kernel.lookahead(at(fast[c.tensor], c.begin * element), at(slow[c.tensor], c.begin * element), DType(dtype), c.size,
                     alpha);
  });
}

}  // namespace ssl_fast
