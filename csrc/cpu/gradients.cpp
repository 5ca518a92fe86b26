// Norm, scaling and centralisation of a list of gradients on a CPU.
#include "cpu/isa/gradients.h"

#include "cpu/chunks.h"

namespace ssl_fast {
namespace {

const GradientKernels& kernels() { return SSL_FAST_PICK(gradients); }

struct Row {
  std::size_t tensor;
  std::int64_t index;
};

}  // namespace

double square_sum(const Addresses& tensors, const Addresses& weights, const Sizes& sizes, int dtype, int threads) {
  const std::int64_t element = element_size(dtype);
  const GradientKernels& kernel = kernels();
  const std::vector<Chunk> chunks = cut(sizes, 0, sizes.size());
  std::vector<double> partials(chunks.size());
  parallel_for(threads, std::int64_t(chunks.size()), [&](std::int64_t task, int) {
    const Chunk& c = chunks[task];
    const void* weight = weights.empty() ? nullptr : at(weights[c.tensor], c.begin * element);
    partials[task] = kernel.square_sum(at(tensors[c.tensor], c.begin * element), weight, DType(dtype), c.size);
  });
  double sum = 0;
  for (const double partial : partials) sum += partial;
  return sum;
}

void scale(const Addresses& tensors, const Sizes& sizes, int dtype, double factor, int threads) {
  const std::int64_t element = element_size(dtype);
  const GradientKernels& kernel = kernels();
  if (factor == 1.0) return;
  for_each_chunk(sizes, threads, [&](const Chunk& c) {
    kernel.scale(at(tensors[c.tensor], c.begin * element), DType(dtype), c.size, factor);
  });
}

void centralize(const Addresses& tensors, const Sizes& sizes, const Sizes& rows, int dtype, int threads) {
  const std::int64_t element = element_size(dtype);
  const GradientKernels& kernel = kernels();
  std::vector<Row> tasks;  // about kChunk elements of whole rows, from `index` on
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] == 0) continue;
    const std::int64_t step = std::max<std::int64_t>(1, kChunk / (sizes[i] / rows[i]));
    for (std::int64_t row = 0; row < rows[i]; row += step) tasks.push_back({i, row});
  }
  parallel_for(threads, std::int64_t(tasks.size()), [&](std::int64_t task, int) {
    const std::size_t i = tasks[task].tensor;
    const std::int64_t length = sizes[i] / rows[i], step = std::max<std::int64_t>(1, kChunk / length);
    const std::int64_t end = std::min(rows[i], tasks[task].index + step);
    for (std::int64_t row = tasks[task].index; row < end; ++row) {
      kernel.centralize(at(tensors[i], row * length * element), DType(dtype), length);
    }
  });
}

}  // namespace ssl_fast
