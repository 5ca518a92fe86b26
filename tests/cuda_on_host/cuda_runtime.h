// CUDA's language on a CPU, in the place of CUDA's own header of this name: each thread of a block is a thread of the
// system, the blocks of a launch follow one another, and a launch ends before the next one begins. Kernels compute what
// they would on a GPU; the address sanitizer sees what is out of bounds, the thread sanitizer a missing barrier.
#pragma once

#include <cuda_runtime_api.h>
#include <pthread.h>
#include <vector_functions.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#undef __global__
#undef __device__
#undef __shared__
#undef __forceinline__
#undef __launch_bounds__
#undef __grid_constant__
#define __global__
#define __device__
#define __shared__ static
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

using std::max;
using std::min;

namespace on_host {

constexpr unsigned kWarp = 32;

// What the threads of a block have in common.
struct Team {
  explicit Team(unsigned threads, std::size_t shared_bytes)
      : threads(threads), shared_bytes(shared_bytes), shared(new char[shared_bytes]), exchanged(threads) {
    pthread_barrier_init(&block, nullptr, threads);
    warps = std::vector<pthread_barrier_t>((threads + kWarp - 1) / kWarp);
    for (unsigned w = 0; w < warps.size(); ++w) {
      pthread_barrier_init(&warps[w], nullptr, std::min(kWarp, threads - w * kWarp));
    }
  }
  ~Team() {
    pthread_barrier_destroy(&block);
    for (pthread_barrier_t& warp : warps) pthread_barrier_destroy(&warp);
  }

  const unsigned threads;
  const std::size_t shared_bytes;
  std::unique_ptr<char[]> shared;
  std::vector<double> exchanged;  // a number of each thread
  pthread_barrier_t block;
  std::vector<pthread_barrier_t> warps;
};

inline thread_local Team* team = nullptr;

}  // namespace on_host

inline thread_local uint3 threadIdx, blockIdx;
inline thread_local dim3 gridDim, blockDim;

inline void __syncthreads() { pthread_barrier_wait(&on_host::team->block); }

// Every thread of the warp must call it; those at its end keep their own number.
template <typename T>
T __shfl_down_sync(unsigned, T value, unsigned distance) {
  static_assert(sizeof(T) <= sizeof(double));
  on_host::Team& team = *on_host::team;
  pthread_barrier_t* warp = &team.warps[threadIdx.x / on_host::kWarp];
  std::memcpy(&team.exchanged[threadIdx.x], &value, sizeof(T));
  pthread_barrier_wait(warp);
  T found = value;
  const unsigned from = threadIdx.x + distance;
  if (threadIdx.x % on_host::kWarp + distance < on_host::kWarp && from < team.threads) {
    std::memcpy(&found, &team.exchanged[from], sizeof(T));
  }
  pthread_barrier_wait(warp);
  return found;
}

namespace on_host {

// kernel<<<blocks, threads, shared_bytes, stream>>>(arguments): `body` calls the kernel.
template <typename Body>
void launch(unsigned blocks, unsigned threads, std::size_t shared_bytes, cudaStream_t, Body body) {
  Team common(threads, shared_bytes);
  std::vector<std::thread> all;
  for (unsigned t = 0; t < threads; ++t) {
    all.emplace_back([&, t] {
      team = &common;
      threadIdx = {t, 0, 0};
      gridDim = dim3(blocks);
      blockDim = dim3(threads);
      for (unsigned b = 0; b < blocks; ++b) {
        if (t == 0) std::memset(common.shared.get(), 0xff, shared_bytes);  // NaN: nobody may count on zeros
        __syncthreads();
        blockIdx = {b, 0, 0};
        body();
        __syncthreads();
      }
    });
  }
  for (std::thread& one : all) one.join();
}

}  // namespace on_host

template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int) {
  return cudaSuccess;
}
