// What the whole-model updates on a GPU share. The tensors' addresses travel in the kernel's parameter block (up to
// 32 KB), one block of threads handles one chunk of one tensor. Sums go through fixed-order partials, so two runs give
// the same bits. Everything is local to the file that includes it.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "cuda/api.h"

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

inline std::int64_t chunk_size(const Sizes& sizes) {
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

// Chunks of one call over all its tables.
inline std::int64_t chunk_count(const Sizes& sizes) {
  const std::int64_t chunk = chunk_size(sizes);
  std::int64_t chunks = 0;
  for (const std::int64_t size : sizes) chunks += (size + chunk - 1) / chunk;
  return chunks;
}

inline cudaStream_t as_stream(Address stream) { return reinterpret_cast<cudaStream_t>(stream); }

}  // namespace
}  // namespace ssl_fast::cuda
