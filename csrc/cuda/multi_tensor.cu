// EMA, Lookahead and LARS on a GPU.
#include <algorithm>

#include "core/multi_tensor.h"
#include "cuda/api.h"
#include "cuda/multi_tensor.cuh"

namespace ssl_fast::cuda {
namespace {

using EmaTable = Table<2, 1024>;
using LarsTable = Table<3, 832>;
static_assert(sizeof(EmaTable) + 64 <= kParameterBytes && sizeof(LarsTable) + 128 <= kParameterBytes, "");

template <typename T, typename S, typename A>
__global__ void __launch_bounds__(kThreads) ema_kernel(const __grid_constant__ EmaTable table, A weight) {
  const Chunk chunk = find_chunk(table, blockIdx.x);
  T* t = static_cast<T*>(table.data[0][chunk.tensor]) + chunk.begin;
  const S* s = static_cast<const S*>(table.data[1][chunk.tensor]) + chunk.begin;
  const bool vector = aligned(t) && aligned(s);
  for (int i = threadIdx.x * kVector; i < chunk.size; i += kThreads * kVector) {
    const int n = min(kVector, chunk.size - i);
    const bool whole = vector && n == kVector;
    Pack<T> x = load(t + i, n, whole);
    const Pack<S> y = load(s + i, n, whole);
#pragma unroll
    for (int k = 0; k < kVector; ++k) narrow(lerp(A(widen(x.at[k])), A(widen(y.at[k])), weight), x.at[k]);
    store(t + i, x, n, whole);
  }
}

// f is the fast, s the slow weight.
template <typename T>
__global__ void __launch_bounds__(kThreads) lookahead_kernel(const __grid_constant__ EmaTable table, Wide<T> alpha) {
  const Chunk chunk = find_chunk(table, blockIdx.x);
  T* f = static_cast<T*>(table.data[0][chunk.tensor]) + chunk.begin;
  T* s = static_cast<T*>(table.data[1][chunk.tensor]) + chunk.begin;
  const bool vector = aligned(f) && aligned(s);
  for (int i = threadIdx.x * kVector; i < chunk.size; i += kThreads * kVector) {
    const int n = min(kVector, chunk.size - i);
    const bool whole = vector && n == kVector;
    const Pack<T> x = load(f + i, n, whole);
    Pack<T> y = load(s + i, n, whole);
#pragma unroll
    for (int k = 0; k < kVector; ++k) {
      narrow(lerp(Wide<T>(widen(y.at[k])), Wide<T>(widen(x.at[k])), alpha), y.at[k]);
    }
    store(s + i, y, n, whole);
    store(f + i, y, n, whole);
  }
}

// partials[chunk] = sums of squares of p and g.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    lars_squares_kernel(const __grid_constant__ LarsTable table, double2* partials) {
  using A = Wide<T>;
  const Chunk chunk = find_chunk(table, blockIdx.x);
  if (!table.adapt[chunk.tensor]) return;
  const T* p = static_cast<const T*>(table.data[0][chunk.tensor]) + chunk.begin;
  const T* g = static_cast<const T*>(table.data[1][chunk.tensor]) + chunk.begin;
  const bool vector = aligned(p) && aligned(g);
  A p_sum = 0, g_sum = 0;
  for (int i = threadIdx.x * kVector; i < chunk.size; i += kThreads * kVector) {
    const int n = min(kVector, chunk.size - i);
    const bool whole = vector && n == kVector;
    const Pack<T> x = load(p + i, n, whole), y = load(g + i, n, whole);
#pragma unroll
    for (int k = 0; k < kVector; ++k) {
      if (k < n) {
        p_sum += A(widen(x.at[k])) * A(widen(x.at[k]));
        g_sum += A(widen(y.at[k])) * A(widen(y.at[k]));
      }
    }
  }
  const double2 sum = block_sum(p_sum, g_sum);
  if (threadIdx.x == 0) partials[chunk.index] = sum;
}

// The trust ratio of a tensor; every block of the tensor gets the same bits.
template <typename A>
__device__ __forceinline__ A tensor_ratio(const LarsTable& table, int tensor, const double2* partials,
                                          const LarsNumbers<A>& numbers) {
  __shared__ A ratio;
  double p_sum = 0, g_sum = 0;
  for (int i = table.first_chunk[tensor] + threadIdx.x; i < table.first_chunk[tensor + 1]; i += kThreads) {
    p_sum += partials[i].x;
    g_sum += partials[i].y;
  }
  const double2 sum = block_sum(p_sum, g_sum);
  if (threadIdx.x == 0) ratio = trust_ratio(sum.x, sum.y, numbers);
  __syncthreads();
  return ratio;
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    lars_update_kernel(const __grid_constant__ LarsTable table, const double2* partials, const double* lr,
                       LarsNumbers<Wide<T>> numbers) {
  using A = Wide<T>;
  // From the end: what the sums read last is still in the cache.
  const Chunk chunk = find_chunk(table, gridDim.x - 1 - blockIdx.x);
  if (lr != nullptr) numbers.lr = A(*lr);
  const bool adapt = table.adapt[chunk.tensor];
  const A ratio = adapt ? tensor_ratio(table, chunk.tensor, partials, numbers) : A(1);
  const A decay = adapt ? numbers.weight_decay : A(0);
  T* p = static_cast<T*>(table.data[0][chunk.tensor]) + chunk.begin;
  const T* g = static_cast<const T*>(table.data[1][chunk.tensor]) + chunk.begin;
  A* v = static_cast<A*>(table.data[2][chunk.tensor]) + chunk.begin;
  const bool vector = aligned(p) && aligned(g) && aligned(v);
  for (int i = threadIdx.x * kVector; i < chunk.size; i += kThreads * kVector) {
    const int n = min(kVector, chunk.size - i);
    const bool whole = vector && n == kVector;
    Pack<T> x = load(p + i, n, whole);
    const Pack<T> y = load(g + i, n, whole);
    Pack<A> z = load(v + i, n, whole);
#pragma unroll
    for (int k = 0; k < kVector; ++k) {
      A wide = widen(x.at[k]);
      lars_element(wide, A(widen(y.at[k])), z.at[k], ratio, decay, numbers);
      narrow(wide, x.at[k]);
    }
    store(p + i, x, n, whole);
    store(v + i, z, n, whole);
  }
}

}  // namespace

void ema_update(const Addresses& targets, const Addresses& sources, const Sizes& sizes, int target_dtype,
                int source_dtype, double momentum, int device, Address stream) {
  const DeviceGuard guard(device);
  visit(target_dtype, [&](auto t_type) {
    visit(source_dtype, [&](auto s_type) {
      using T = decltype(t_type);
      using S = decltype(s_type);
      using A = decltype(Wide<T>() + Wide<S>());
      for_each_table<EmaTable>({&targets, &sources}, sizes, nullptr, [&](const EmaTable& table) {
        ema_kernel<T, S, A><<<table.first_chunk[table.count], kThreads, 0, reinterpret_cast<cudaStream_t>(stream)>>>(
            table, A(1 - momentum));
      });
    });
  });
}

std::int64_t lars_workspace(const Sizes& sizes) { return chunk_count(sizes) * std::int64_t(sizeof(double2)); }

void lars_step(const Addresses& params, const Addresses& grads, const Addresses& buffers, const Sizes& sizes,
               const std::vector<bool>& adapt, int dtype, double lr, Address lr_tensor, double momentum,
               double weight_decay, double trust_coefficient, double eps, bool nesterov, bool clip, Address workspace,
               int device, Address stream_address) {
  const DeviceGuard guard(device);
  const cudaStream_t stream = reinterpret_cast<cudaStream_t>(stream_address);
  double2* partials = reinterpret_cast<double2*>(workspace);
  const double* device_lr = reinterpret_cast<const double*>(lr_tensor);
  visit(dtype, [&](auto type) {
    using T = decltype(type);
    using A = Wide<T>;
    const LarsNumbers<A> numbers{A(lr), A(momentum), A(weight_decay), A(trust_coefficient), A(eps), nesterov, clip};
    for_each_table<LarsTable>({&params, &grads, &buffers}, sizes, &adapt, [&](const LarsTable& table) {
      const int blocks = table.first_chunk[table.count];
      if (std::any_of(table.adapt, table.adapt + table.count, [](bool adapted) { return adapted; })) {
        lars_squares_kernel<T><<<blocks, kThreads, 0, stream>>>(table, partials);
      }
      lars_update_kernel<T><<<blocks, kThreads, 0, stream>>>(table, partials, device_lr, numbers);
    });
  });
}

void lookahead_update(const Addresses& fast, const Addresses& slow, const Sizes& sizes, int dtype, double alpha,
                      int device, Address stream) {
  const DeviceGuard guard(device);
  visit(dtype, [&](auto type) {
    using T = decltype(type);
    for_each_table<EmaTable>({&fast, &slow}, sizes, nullptr, [&](const EmaTable& table) {
      lookahead_kernel<T><<<table.first_chunk[table.count], kThreads, 0, as_stream(stream)>>>(table, Wide<T>(alpha));
    });
  });
}

}  // namespace ssl_fast::cuda
