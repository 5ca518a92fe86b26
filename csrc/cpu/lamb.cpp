// LAMB on a CPU: the moments and norms of a run of tensors that fits the cache, then their update.
#include "cpu/isa/lamb.h"

#include <cmath>

#include "cpu/chunks.h"

namespace ssl_fast {
namespace {

const LambKernels& kernels() { return SSL_FAST_PICK(lamb); }

// The trust ratio of every adapted tensor of these chunks.
void sum_ratios(const std::vector<Chunk>& chunks, const std::vector<LambSquares>& partials,
                const std::vector<bool>& adapt, const LambNumbers<double>& numbers, std::vector<double>* ratios) {
  for (std::size_t k = 0; k < chunks.size();) {
    const std::size_t tensor = chunks[k].tensor;
    LambSquares sum{0, 0};
    for (; k < chunks.size() && chunks[k].tensor == tensor; ++k) {
      sum.p += partials[k].p;
      sum.u += partials[k].u;
    }
    if (adapt[tensor]) (*ratios)[tensor] = lamb_ratio(sum.p, sum.u, numbers);
  }
}

}  // namespace

void lamb_step(const Addresses& params, const Addresses& grads, const Addresses& first, const Addresses& second,
               const Sizes& sizes, const std::vector<bool>& adapt, int dtype, double lr, double beta1, double beta2,
               double eps, double weight_decay, bool bias_correction, bool clip, double step, int threads) {
  const double correction1 = moment_correction(beta1, step, bias_correction);
  const double correction2 = moment_correction(beta2, step, bias_correction);
  const LambNumbers<double> numbers{
      lr, 1 - beta1, beta2, 1 - beta2, eps, weight_decay, correction1, std::sqrt(correction2), clip};
  const std::int64_t element = element_size(dtype), moment_element = std::max<std::int64_t>(4, element);
  const LambKernels& kernel = kernels();
  std::vector<double> ratios(sizes.size(), 1.0);
  for (std::size_t begin = 0, end; begin < sizes.size(); begin = end) {
    end = cached_run(sizes, begin, element + 2 * moment_element);
    const std::vector<Chunk> chunks = cut(sizes, begin, end);
    std::vector<LambSquares> partials(chunks.size());
    parallel_for(threads, std::int64_t(chunks.size()), [&](std::int64_t task, int) {
      const Chunk& c = chunks[task];
      const std::int64_t offset = c.begin * element, moment_offset = c.begin * moment_element;
      partials[task] = kernel.moments(at(params[c.tensor], offset), at(grads[c.tensor], offset),
                                      at(first[c.tensor], moment_offset), at(second[c.tensor], moment_offset),
                                      DType(dtype), c.size, adapt[c.tensor] ? weight_decay : 0.0, numbers);
    });
    sum_ratios(chunks, partials, adapt, numbers, &ratios);
    parallel_for(threads, std::int64_t(chunks.size()), [&](std::int64_t task, int) {
      const Chunk& c = chunks[chunks.size() - 1 - task];  // what the first pass touched last is still in the cache
      kernel.update(at(params[c.tensor], c.begin * element), at(first[c.tensor], c.begin * moment_element),
                    at(second[c.tensor], c.begin * moment_element), DType(dtype), c.size, ratios[c.tensor],
                    adapt[c.tensor] ? weight_decay : 0.0, numbers);
    });
  }
}

}  // namespace ssl_fast
