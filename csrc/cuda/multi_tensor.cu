// Whole-model updates on a GPU: the tensors' addresses travel in the kernel's parameter block (up to 32 KB), one block
// of threads handles one chunk of one tensor. Sums go through fixed-order partials, so two runs give the same bits.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "core/multi_tensor.h"
#include "ops.h"

namespace ssl_fast::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kVector = 4;                      // elements a thread reads at once
constexpr std::int64_t kMinChunk = 8192;        // elements
constexpr std::int64_t kMaxChunks = 16384;      // of one call, so that summing partials stays cheap for huge tensors
constexpr std::size_t kParameterBytes = 32764;  // of one launch; CUDA 12.1 and later

template <int kLists, int kTensors>
struct Table {
  void* data[kLists][kTensors];
  std::int64_t sizes[kTensors];
  int first_chunk[kTensors + 1];  // chunk b belongs to the last tensor whose first_chunk is <= b
  bool adapt[kTensors];
  int count;
  std::int64_t chunk;  // elements
  static constexpr int capacity = kTensors;
};
using EmaTable = Table<2, 1024>;
using LarsTable = Table<3, 832>;
static_assert(sizeof(EmaTable) + 64 <= kParameterBytes && sizeof(LarsTable) + 128 <= kParameterBytes, "");

template <typename T>
struct alignas(sizeof(T) * kVector) Pack {
  T at[kVector];
};

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ void narrow(float x, float& y) { y = x; }
__device__ __forceinline__ void narrow(double x, float& y) { y = float(x); }
__device__ __forceinline__ void narrow(double x, double& y) { y = x; }
__device__ __forceinline__ void narrow(double x, __nv_bfloat16& y) { y = __double2bfloat16(x); }
__device__ __forceinline__ void narrow(double x, __half& y) { y = __double2half(x); }
__device__ __forceinline__ void narrow(float x, __nv_bfloat16& y) { y = __float2bfloat16_rn(x); }
__device__ __forceinline__ void narrow(float x, __half& y) { y = __float2half_rn(x); }

template <typename T>
using Wide = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <typename T>
__device__ __forceinline__ bool aligned(const T* x) {
  return reinterpret_cast<std::uintptr_t>(x) % sizeof(Pack<T>) == 0;
}

// n <= kVector elements from x; a whole pack in one transaction where it is aligned.
template <typename T>
__device__ __forceinline__ Pack<T> load(const T* x, int n, bool whole) {
  if (whole) return *reinterpret_cast<const Pack<T>*>(x);
  Pack<T> pack;
#pragma unroll
  for (int k = 0; k < kVector; ++k) {
    if (k < n) pack.at[k] = x[k];
  }
  return pack;
}

template <typename T>
__device__ __forceinline__ void store(T* x, const Pack<T>& pack, int n, bool whole) {
  if (whole) {
    *reinterpret_cast<Pack<T>*>(x) = pack;
    return;
  }
#pragma unroll
  for (int k = 0; k < kVector; ++k) {
    if (k < n) x[k] = pack.at[k];
  }
}

// The part of one tensor that one block handles.
struct Chunk {
  int tensor, index;
  std::int64_t begin;
  int size;
};

template <typename AnyTable>
__device__ __forceinline__ Chunk find_chunk(const AnyTable& table, int block) {
  int low = 0, high = table.count - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (table.first_chunk[middle] <= block) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  const std::int64_t begin = (block - table.first_chunk[low]) * table.chunk;
  return {low, block, begin, int(min(table.chunk, table.sizes[low] - begin))};
}

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

// Sums a and b over the block, in an order that never changes; the result is valid in thread 0.
__device__ __forceinline__ double2 block_sum(double a, double b) {
  __shared__ double2 of_warp[kThreads / 32];
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    a += __shfl_down_sync(0xffffffffu, a, distance);
    b += __shfl_down_sync(0xffffffffu, b, distance);
  }
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = make_double2(a, b);
  __syncthreads();
  double2 sum = make_double2(0, 0);
  if (threadIdx.x == 0) {
    for (int warp = 0; warp < kThreads / 32; ++warp) {
      sum.x += of_warp[warp].x;
      sum.y += of_warp[warp].y;
    }
  }
  return sum;
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

// Makes `device` current for the calls of one scope.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check(cudaGetDevice(&previous_));
    if (device != previous_) check(cudaSetDevice(device));
    changed_ = device != previous_;
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(previous_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;
  static void check(cudaError_t error) {
    if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
  }

 private:
  int previous_ = 0;
  bool changed_ = false;
};

std::int64_t chunk_size(const Sizes& sizes) {
  std::int64_t total = 0, chunk = kMinChunk;
  for (const std::int64_t size : sizes) total += size;
  while (total / chunk > kMaxChunks) chunk *= 2;
  return chunk;
}

// Fills tables with as many tensors as they hold and calls launch(table) for each; empty tensors are left out.
template <typename AnyTable, typename Launch>
void for_each_table(std::initializer_list<const Addresses*> lists, const Sizes& sizes, const std::vector<bool>* adapt,
                    Launch launch) {
  AnyTable table;
  table.count = 0;
  table.chunk = chunk_size(sizes);
  table.first_chunk[0] = 0;
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] > 0) {
      int list = 0;
      for (const Addresses* addresses : lists) {
        table.data[list++][table.count] = reinterpret_cast<void*>((*addresses)[i]);
      }
      table.sizes[table.count] = sizes[i];
      table.adapt[table.count] = adapt != nullptr && (*adapt)[i];
      const int chunks = int((sizes[i] + table.chunk - 1) / table.chunk);
      table.first_chunk[table.count + 1] = table.first_chunk[table.count] + chunks;
      ++table.count;
    }
    if (table.count == AnyTable::capacity || (i + 1 == sizes.size() && table.count > 0)) {
      launch(table);
      DeviceGuard::check(cudaGetLastError());
      table.count = 0;
    }
  }
}

// Calls f with a value of the type that dtype names.
template <typename F>
void visit(int dtype, F f) {
  switch (static_cast<DType>(dtype)) {
    case DType::float32:
      return f(float());
    case DType::float64:
      return f(double());
    case DType::bfloat16:
      return f(__nv_bfloat16());
    case DType::float16:
      return f(__half());
  }
  throw std::invalid_argument("dtype must be 0, 1, 2 or 3, got " + std::to_string(dtype));
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

std::int64_t lars_workspace(const Sizes& sizes) {
  const std::int64_t chunk = chunk_size(sizes);
  std::int64_t chunks = 0;
  for (const std::int64_t size : sizes) chunks += (size + chunk - 1) / chunk;
  return chunks * std::int64_t(sizeof(double2));
}

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

}  // namespace ssl_fast::cuda
