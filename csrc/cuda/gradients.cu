// Norm, scaling and centralisation of a list of gradients on a GPU.
#include "cuda/api.h"
#include "cuda/multi_tensor.cuh"

namespace ssl_fast::cuda {
namespace {

using GradientTable = Table<2, 1024>;
static_assert(sizeof(GradientTable) + 64 <= kParameterBytes, "");

// Rows of one length for each tensor, one after another.
struct RowTable {
  static constexpr int capacity = 1280;
  void* data[capacity];
  std::int64_t lengths[capacity];
  int first_row[capacity + 1];  // row b of the launch belongs to the last tensor whose first_row is <= b
  int count;
};
static_assert(sizeof(RowTable) + 64 <= kParameterBytes, "");

// partials[chunk] = sum of the squares of x, or of w x.
template <typename T, bool kWeighted>
__global__ void __launch_bounds__(kThreads)
    square_sum_kernel(const __grid_constant__ GradientTable table, double* partials) {
  using A = Wide<T>;
  const Chunk chunk = find_chunk(table, blockIdx.x);
  const T* x = static_cast<const T*>(table.data[0][chunk.tensor]) + chunk.begin;
  const T* w = static_cast<const T*>(table.data[1][chunk.tensor]) + chunk.begin;
  const bool vector = aligned(x) && (!kWeighted || aligned(w));
  A sum = 0;
  for (int i = threadIdx.x * kVector; i < chunk.size; i += kThreads * kVector) {
    const int n = min(kVector, chunk.size - i);
    const bool whole = vector && n == kVector;
    const Pack<T> y = load(x + i, n, whole);
    const Pack<T> z = kWeighted ? load(w + i, n, whole) : y;
#pragma unroll
    for (int k = 0; k < kVector; ++k) {
      if (k < n) {
        const A term = kWeighted ? A(widen(z.at[k])) * A(widen(y.at[k])) : A(widen(y.at[k]));
        sum += term * term;
      }
    }
  }
  const double2 total = block_sum(sum, 0);
  if (threadIdx.x == 0) partials[blockIdx.x] = total.x;
}

__global__ void __launch_bounds__(kThreads) finish_sum_kernel(const double* partials, std::int64_t count, double* sum) {
  double own = 0;
  for (std::int64_t i = threadIdx.x; i < count; i += kThreads) own += partials[i];
  const double2 total = block_sum(own, 0);
  if (threadIdx.x == 0) *sum = total.x;
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    scale_kernel(const __grid_constant__ GradientTable table, const double* factor) {
  if (*factor == 1.0) return;
  const Wide<T> f = Wide<T>(*factor);
  const Chunk chunk = find_chunk(table, blockIdx.x);
  T* x = static_cast<T*>(table.data[0][chunk.tensor]) + chunk.begin;
  const bool vector = aligned(x);
  for (int i = threadIdx.x * kVector; i < chunk.size; i += kThreads * kVector) {
    const int n = min(kVector, chunk.size - i);
    const bool whole = vector && n == kVector;
    Pack<T> y = load(x + i, n, whole);
#pragma unroll
    for (int k = 0; k < kVector; ++k) narrow(f * Wide<T>(widen(y.at[k])), y.at[k]);
    store(x + i, y, n, whole);
  }
}

// One block takes one row: its mean, then the row less it (the row is in the cache by then).
template <typename T>
__global__ void __launch_bounds__(kThreads) centralize_kernel(const __grid_constant__ RowTable table) {
  __shared__ double mean;
  const int row = blockIdx.x;
  int low = 0, high = table.count - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (table.first_row[middle] <= row) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  const std::int64_t length = table.lengths[low];
  T* x = static_cast<T*>(table.data[low]) + (row - table.first_row[low]) * length;
  Wide<T> own = 0;
  for (std::int64_t i = threadIdx.x; i < length; i += kThreads) own += widen(x[i]);
  const double2 total = block_sum(own, 0);
  if (threadIdx.x == 0) mean = total.x / double(length);
  __syncthreads();
  const Wide<T> shift = Wide<T>(mean);
  for (std::int64_t i = threadIdx.x; i < length; i += kThreads) narrow(Wide<T>(widen(x[i])) - shift, x[i]);
}

}  // namespace

std::int64_t square_sum_workspace(const Sizes& sizes) { return chunk_count(sizes) * std::int64_t(sizeof(double)); }

void square_sum(const Addresses& tensors, const Addresses& weights, const Sizes& sizes, int dtype, Address workspace,
                Address sum, int device, Address stream) {
  const DeviceGuard guard(device);
  double* partials = reinterpret_cast<double*>(workspace);
  std::int64_t done = 0;
  visit(dtype, [&](auto type) {
    using T = decltype(type);
    const Addresses& second = weights.empty() ? tensors : weights;
    for_each_table<GradientTable>({&tensors, &second}, sizes, nullptr, [&](const GradientTable& table) {
      const int blocks = table.first_chunk[table.count];
      if (weights.empty()) {
        square_sum_kernel<T, false><<<blocks, kThreads, 0, as_stream(stream)>>>(table, partials + done);
      } else {
        square_sum_kernel<T, true><<<blocks, kThreads, 0, as_stream(stream)>>>(table, partials + done);
      }
      done += blocks;
    });
  });
  finish_sum_kernel<<<1, kThreads, 0, as_stream(stream)>>>(partials, done, reinterpret_cast<double*>(sum));
  DeviceGuard::check(cudaGetLastError());
}

void scale(const Addresses& tensors, const Sizes& sizes, int dtype, Address factor, int device, Address stream) {
  const DeviceGuard guard(device);
  visit(dtype, [&](auto type) {
    using T = decltype(type);
    for_each_table<GradientTable>({&tensors}, sizes, nullptr, [&](const GradientTable& table) {
      scale_kernel<T><<<table.first_chunk[table.count], kThreads, 0, as_stream(stream)>>>(
          table, reinterpret_cast<const double*>(factor));
    });
  });
}

void centralize(const Addresses& tensors, const Sizes& sizes, const Sizes& rows, int dtype, int device,
                Address stream) {
  const DeviceGuard guard(device);
  visit(dtype, [&](auto type) {
    using T = decltype(type);
    RowTable table;
    table.count = 0;
    table.first_row[0] = 0;
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      if (sizes[i] > 0) {
        table.data[table.count] = reinterpret_cast<void*>(tensors[i]);
        table.lengths[table.count] = sizes[i] / rows[i];
        table.first_row[table.count + 1] = table.first_row[table.count] + int(rows[i]);
        ++table.count;
      }
      if (table.count == RowTable::capacity || (i + 1 == sizes.size() && table.count > 0)) {
        centralize_kernel<T><<<table.first_row[table.count], kThreads, 0, as_stream(stream)>>>(table);
        DeviceGuard::check(cudaGetLastError());
        table.count = 0;
      }
    }
  });
}

}  // namespace ssl_fast::cuda
