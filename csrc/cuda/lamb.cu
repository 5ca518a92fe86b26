// LAMB on a GPU: moments and the partial sums of both norms, then the update.
#include "core/lamb.h"
#include "cuda/api.h"
#include "cuda/multi_tensor.cuh"

namespace ssl_fast::cuda {
namespace {

using LambTable = Table<4, 704>;
static_assert(sizeof(LambTable) + 192 <= kParameterBytes, "");

// What lies on the device: the learning rate (null: the number is used) and the step.
struct LambScalars {
  const double* lr;
  const double* step;
  bool bias_correction;
};

// The numbers of a step with what is read on the device; beta1 and beta2 as doubles for their powers.
template <typename A>
__device__ __forceinline__ void read_scalars(const LambScalars& scalars, double beta1, double beta2,
                                             LambNumbers<A>* numbers) {
  __shared__ A corrections[2];
  if (threadIdx.x == 0) {
    corrections[0] = A(moment_correction(beta1, *scalars.step, scalars.bias_correction));
    corrections[1] = A(sqrt(moment_correction(beta2, *scalars.step, scalars.bias_correction)));
  }
  __syncthreads();
  numbers->correction1 = corrections[0];
  numbers->correction2_root = corrections[1];
  if (scalars.lr != nullptr) numbers->lr = A(*scalars.lr);
}

// Lists: p, g, m, v. partials[chunk] = sums of squares of p and of its direction.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    lamb_moments_kernel(const __grid_constant__ LambTable table, double2* partials, LambScalars scalars, double beta1,
                        double beta2, LambNumbers<Wide<T>> numbers) {
  using A = Wide<T>;
  read_scalars(scalars, beta1, beta2, &numbers);
  const Chunk chunk = find_chunk(table, blockIdx.x);
  const A decay = table.adapt[chunk.tensor] ? numbers.weight_decay : A(0);
  const T* p = static_cast<const T*>(table.data[0][chunk.tensor]) + chunk.begin;
  const T* g = static_cast<const T*>(table.data[1][chunk.tensor]) + chunk.begin;
  A* m = static_cast<A*>(table.data[2][chunk.tensor]) + chunk.begin;
  A* v = static_cast<A*>(table.data[3][chunk.tensor]) + chunk.begin;
  const bool vector = aligned(p) && aligned(g) && aligned(m) && aligned(v);
  A p_sum = 0, u_sum = 0;
  for (int i = threadIdx.x * kVector; i < chunk.size; i += kThreads * kVector) {
    const int n = min(kVector, chunk.size - i);
    const bool whole = vector && n == kVector;
    const Pack<T> x = load(p + i, n, whole), y = load(g + i, n, whole);
    Pack<A> a = load(m + i, n, whole), b = load(v + i, n, whole);
#pragma unroll
    for (int k = 0; k < kVector; ++k) {
      if (k < n) {
        const A wide = widen(x.at[k]);
        lamb_moments(A(widen(y.at[k])), a.at[k], b.at[k], numbers);
        const A u = lamb_direction(wide, a.at[k], b.at[k], decay, numbers);
        p_sum += wide * wide;
        u_sum += u * u;
      }
    }
    store(m + i, a, n, whole);
    store(v + i, b, n, whole);
  }
  const double2 sum = block_sum(p_sum, u_sum);
  if (threadIdx.x == 0) partials[chunk.index] = sum;
}

// The trust ratio of a tensor; every block of the tensor gets the same bits.
template <typename A>
__device__ __forceinline__ A tensor_lamb_ratio(const LambTable& table, int tensor, const double2* partials,
                                               const LambNumbers<A>& numbers) {
  __shared__ A ratio;
  double p_sum = 0, u_sum = 0;
  for (int i = table.first_chunk[tensor] + threadIdx.x; i < table.first_chunk[tensor + 1]; i += kThreads) {
    p_sum += partials[i].x;
    u_sum += partials[i].y;
  }
  const double2 sum = block_sum(p_sum, u_sum);
  if (threadIdx.x == 0) ratio = lamb_ratio(sum.x, sum.y, numbers);
  __syncthreads();
  return ratio;
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    lamb_update_kernel(const __grid_constant__ LambTable table, const double2* partials, LambScalars scalars,
                       double beta1, double beta2, LambNumbers<Wide<T>> numbers) {
  using A = Wide<T>;
  read_scalars(scalars, beta1, beta2, &numbers);
  // From the end: what the moments touched last is still in the cache.
  const Chunk chunk = find_chunk(table, gridDim.x - 1 - blockIdx.x);
  const bool adapt = table.adapt[chunk.tensor];
  const A rate = numbers.lr * (adapt ? tensor_lamb_ratio(table, chunk.tensor, partials, numbers) : A(1));
  const A decay = adapt ? numbers.weight_decay : A(0);
  T* p = static_cast<T*>(table.data[0][chunk.tensor]) + chunk.begin;
  const A* m = static_cast<const A*>(table.data[2][chunk.tensor]) + chunk.begin;
  const A* v = static_cast<const A*>(table.data[3][chunk.tensor]) + chunk.begin;
  const bool vector = aligned(p) && aligned(m) && aligned(v);
  for (int i = threadIdx.x * kVector; i < chunk.size; i += kThreads * kVector) {
    const int n = min(kVector, chunk.size - i);
    const bool whole = vector && n == kVector;
    Pack<T> x = load(p + i, n, whole);
    const Pack<A> a = load(m + i, n, whole), b = load(v + i, n, whole);
#pragma unroll
    for (int k = 0; k < kVector; ++k) {
      const A wide = widen(x.at[k]);
      narrow(wide - rate * lamb_direction(wide, a.at[k], b.at[k], decay, numbers), x.at[k]);
    }
    store(p + i, x, n, whole);
  }
}

}  // namespace

std::int64_t lamb_workspace(const Sizes& sizes) { return chunk_count(sizes) * std::int64_t(sizeof(double2)); }

void lamb_step(const Addresses& params, const Addresses& grads, const Addresses& first, const Addresses& second,
               const Sizes& sizes, const std::vector<bool>& adapt, int dtype, double lr, Address lr_tensor,
               double beta1, double beta2, double eps, double weight_decay, bool bias_correction, bool clip,
               Address step, Address workspace, int device, Address stream) {
  const DeviceGuard guard(device);
  const LambScalars scalars{reinterpret_cast<const double*>(lr_tensor), reinterpret_cast<const double*>(step),
                            bias_correction};
  double2* partials = reinterpret_cast<double2*>(workspace);
  visit(dtype, [&](auto type) {
    using T = decltype(type);
    using A = Wide<T>;
    const LambNumbers<A> numbers{A(lr),           A(1 - beta1), A(beta2), A(1 - beta2), A(eps),
                                 A(weight_decay), A(1),         A(1),     clip};
    for_each_table<LambTable>({&params, &grads, &first, &second}, sizes, &adapt, [&](const LambTable& table) {
      const int blocks = table.first_chunk[table.count];
      lamb_moments_kernel<T>
          <<<blocks, kThreads, 0, as_stream(stream)>>>(table, partials, scalars, beta1, beta2, numbers);
      lamb_update_kernel<T>
          <<<blocks, kThreads, 0, as_stream(stream)>>>(table, partials, scalars, beta1, beta2, numbers);
    });
  });
}

}  // namespace ssl_fast::cuda
