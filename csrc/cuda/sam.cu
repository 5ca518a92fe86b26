// SAM on a GPU: to the perturbed parameters and, with the step of SGD or AdamW, back.
#include <cmath>

#include "core/sam.h"
#include "cuda/api.h"
#include "cuda/multi_tensor.cuh"

namespace ssl_fast::cuda {
namespace {

using AscendTable = Table<3, 832>;
using SgdTable = Table<4, 704>;
using AdamWTable = Table<5, 592>;
static_assert(sizeof(AscendTable) + 128 <= kParameterBytes && sizeof(SgdTable) + 128 <= kParameterBytes, "");
static_assert(sizeof(AdamWTable) + 128 <= kParameterBytes, "");

// Lists: p, g, saved.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    sam_ascend_kernel(const __grid_constant__ AscendTable table, const double* factor, bool adaptive) {
  using A = Wide<T>;
  const A f = A(*factor);
  const Chunk chunk = find_chunk(table, blockIdx.x);
  T* p = static_cast<T*>(table.data[0][chunk.tensor]) + chunk.begin;
  const T* g = static_cast<const T*>(table.data[1][chunk.tensor]) + chunk.begin;
  T* saved = static_cast<T*>(table.data[2][chunk.tensor]) + chunk.begin;
  const bool vector = aligned(p) && aligned(g) && aligned(saved);
  for (int i = threadIdx.x * kVector; i < chunk.size; i += kThreads * kVector) {
    const int n = min(kVector, chunk.size - i);
    const bool whole = vector && n == kVector;
    Pack<T> x = load(p + i, n, whole);
    const Pack<T> y = load(g + i, n, whole);
    store(saved + i, x, n, whole);
#pragma unroll
    for (int k = 0; k < kVector; ++k) {
      narrow(ascended(A(widen(x.at[k])), A(widen(y.at[k])), f, adaptive), x.at[k]);
    }
    store(p + i, x, n, whole);
  }
}

// Lists: p, saved, g, momentum.
template <typename T, bool kMomentum>
__global__ void __launch_bounds__(kThreads)
    sam_sgd_kernel(const __grid_constant__ SgdTable table, const double* lr, SgdNumbers<Wide<T>> numbers) {
  using A = Wide<T>;
  if (lr != nullptr) numbers.lr = A(*lr);
  const Chunk chunk = find_chunk(table, blockIdx.x);
  T* p = static_cast<T*>(table.data[0][chunk.tensor]) + chunk.begin;
  const T* saved = static_cast<const T*>(table.data[1][chunk.tensor]) + chunk.begin;
  const T* g = static_cast<const T*>(table.data[2][chunk.tensor]) + chunk.begin;
  T* v = kMomentum ? static_cast<T*>(table.data[3][chunk.tensor]) + chunk.begin : nullptr;
  const bool vector = aligned(p) && aligned(saved) && aligned(g) && aligned(v);
  for (int i = threadIdx.x * kVector; i < chunk.size; i += kThreads * kVector) {
    const int n = min(kVector, chunk.size - i);
    const bool whole = vector && n == kVector;
    Pack<T> x = load(saved + i, n, whole);
    const Pack<T> y = load(g + i, n, whole);
    Pack<T> z = y;
    if (kMomentum) z = load(v + i, n, whole);
#pragma unroll
    for (int k = 0; k < kVector; ++k) {
      A momentum = kMomentum ? A(widen(z.at[k])) : A(0);
      narrow(sgd_element(A(widen(x.at[k])), A(widen(y.at[k])), momentum, numbers), x.at[k]);
      narrow(momentum, z.at[k]);
    }
    store(p + i, x, n, whole);
    if (kMomentum) store(v + i, z, n, whole);
  }
}

// Lists: p, saved, g, first moment, second moment.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    sam_adamw_kernel(const __grid_constant__ AdamWTable table, const double* lr, AdamWNumbers<Wide<T>> numbers) {
  using A = Wide<T>;
  if (lr != nullptr) numbers.lr = A(*lr);
  const Chunk chunk = find_chunk(table, blockIdx.x);
  T* p = static_cast<T*>(table.data[0][chunk.tensor]) + chunk.begin;
  const T* saved = static_cast<const T*>(table.data[1][chunk.tensor]) + chunk.begin;
  const T* g = static_cast<const T*>(table.data[2][chunk.tensor]) + chunk.begin;
  T* m = static_cast<T*>(table.data[3][chunk.tensor]) + chunk.begin;
  T* v = static_cast<T*>(table.data[4][chunk.tensor]) + chunk.begin;
  const bool vector = aligned(p) && aligned(saved) && aligned(g) && aligned(m) && aligned(v);
  for (int i = threadIdx.x * kVector; i < chunk.size; i += kThreads * kVector) {
    const int n = min(kVector, chunk.size - i);
    const bool whole = vector && n == kVector;
    Pack<T> x = load(saved + i, n, whole);
    const Pack<T> y = load(g + i, n, whole);
    Pack<T> a = load(m + i, n, whole), b = load(v + i, n, whole);
#pragma unroll
    for (int k = 0; k < kVector; ++k) {
      A first = widen(a.at[k]), second = widen(b.at[k]);
      narrow(adamw_element(A(widen(x.at[k])), A(widen(y.at[k])), first, second, numbers), x.at[k]);
      narrow(first, a.at[k]);
      narrow(second, b.at[k]);
    }
    store(p + i, x, n, whole);
    store(m + i, a, n, whole);
    store(v + i, b, n, whole);
  }
}

}  // namespace

void sam_ascend(const Addresses& params, const Addresses& grads, const Addresses& saved, const Sizes& sizes, int dtype,
                Address factor, bool adaptive, int device, Address stream) {
  const DeviceGuard guard(device);
  visit(dtype, [&](auto type) {
    using T = decltype(type);
    for_each_table<AscendTable>({&params, &grads, &saved}, sizes, nullptr, [&](const AscendTable& table) {
      sam_ascend_kernel<T><<<table.first_chunk[table.count], kThreads, 0, as_stream(stream)>>>(
          table, reinterpret_cast<const double*>(factor), adaptive);
    });
  });
}

void sam_sgd(const Addresses& params, const Addresses& saved, const Addresses& grads, const Addresses& buffers,
             const Sizes& sizes, int dtype, double lr, Address lr_tensor, double momentum, double weight_decay,
             bool nesterov, int device, Address stream) {
  const DeviceGuard guard(device);
  const double* device_lr = reinterpret_cast<const double*>(lr_tensor);
  visit(dtype, [&](auto type) {
    using T = decltype(type);
    using A = Wide<T>;
    const SgdNumbers<A> numbers{A(lr), A(momentum), A(weight_decay), nesterov};
    const Addresses& fourth = buffers.empty() ? params : buffers;
    for_each_table<SgdTable>({&params, &saved, &grads, &fourth}, sizes, nullptr, [&](const SgdTable& table) {
      const int blocks = table.first_chunk[table.count];
      if (buffers.empty()) {
        sam_sgd_kernel<T, false><<<blocks, kThreads, 0, as_stream(stream)>>>(table, device_lr, numbers);
      } else {
        sam_sgd_kernel<T, true><<<blocks, kThreads, 0, as_stream(stream)>>>(table, device_lr, numbers);
      }
    });
  });
}

void sam_adamw(const Addresses& params, const Addresses& saved, const Addresses& grads, const Addresses& first,
               const Addresses& second, const Sizes& sizes, int dtype, double lr, Address lr_tensor, double beta1,
               double beta2, double eps, double weight_decay, double step, int device, Address stream) {
  const DeviceGuard guard(device);
  const double* device_lr = reinterpret_cast<const double*>(lr_tensor);
  const double correction1 = bias_correction(beta1, step), correction2 = bias_correction(beta2, step);
  visit(dtype, [&](auto type) {
    using T = decltype(type);
    using A = Wide<T>;
    const AdamWNumbers<A> numbers{A(lr),  A(1 - beta1),    A(beta2),       A(1 - beta2),
                                  A(eps), A(weight_decay), A(correction1), A(std::sqrt(correction2))};
    for_each_table<AdamWTable>(
        {&params, &saved, &grads, &first, &second}, sizes, nullptr, [&](const AdamWTable& table) {
          const int blocks = table.first_chunk[table.count];
          sam_adamw_kernel<T><<<blocks, kThreads, 0, as_stream(stream)>>>(table, device_lr, numbers);
        });
  });
}

}  // namespace ssl_fast::cuda
