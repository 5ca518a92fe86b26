// Whole-model updates on a CPU. Tensors are cut into chunks of one size, which are the tasks of the threads and the
// terms of every sum: the bits do not depend on the number of threads.
#include "cpu/isa/multi_tensor.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "ops.h"

namespace ssl_fast {
namespace {

constexpr std::int64_t kChunk = 1 << 14;        // elements
constexpr std::int64_t kCachedBytes = 8 << 20;  // of parameters and gradients between the two passes of LARS

const MultiTensorKernels& kernels() {
  switch (chosen_isa()) {
#ifdef SSL_FAST_HAS_avx512
    case Isa::avx512:
      return avx512::multi_tensor;
#endif
#ifdef SSL_FAST_HAS_avx2
    case Isa::avx2:
      return avx2::multi_tensor;
#endif
    default:
      return generic::multi_tensor;
  }
}

std::int64_t element_size(int dtype) {
  switch (static_cast<DType>(dtype)) {
    case DType::float32:
      return 4;
    case DType::float64:
      return 8;
    case DType::bfloat16:
    case DType::float16:
      return 2;
  }
  throw std::invalid_argument("dtype must be 0, 1, 2 or 3, got " + std::to_string(dtype));
}

struct Chunk {
  std::size_t tensor;
  std::int64_t begin, size;  // elements
};

// Chunks of the tensors first, first + 1, ... last - 1.
std::vector<Chunk> cut(const Sizes& sizes, std::size_t first, std::size_t last) {
  std::vector<Chunk> chunks;
  for (std::size_t i = first; i < last; ++i) {
    for (std::int64_t begin = 0; begin < sizes[i]; begin += kChunk) {
      chunks.push_back({i, begin, std::min(kChunk, sizes[i] - begin)});
    }
  }
  return chunks;
}

void* at(Address base, std::int64_t offset) { return reinterpret_cast<void*>(base + std::uintptr_t(offset)); }

// One past the last of the tensors from `first` on whose parameters and gradients fit the cache together; at least one.
std::size_t cached_run(const Sizes& sizes, std::size_t first, std::int64_t element) {
  std::int64_t bytes = 0;
  std::size_t last = first;
  while (last < sizes.size() && (last == first || bytes + 2 * element * sizes[last] <= kCachedBytes)) {
    bytes += 2 * element * sizes[last++];
  }
  return last;
}

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
    last = cached_run(sizes, first, element);
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

}  // namespace ssl_fast
