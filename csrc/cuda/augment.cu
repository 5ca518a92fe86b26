// Augmented views on a GPU: three launches make all views of all images (of as many as fit the workspace).
//
// Why so: the resized crop consists of whole levels (core/resample.h), so it can lie in global memory as bytes without
// loss. At 224 px that is 150 KB a view, and 32 MB of them stay in the second-level cache between two launches, beside
// 300 KB to 600 KB of output that must be written anyway. With that cut, contrast's mean of a whole view is a sum over
// tiles that the next launch adds up, and no view is bound to one block: tiles of 8 x 224 pixels give 28 blocks a view,
// enough for a whole GPU from a handful of images, and 24 KB of shared memory where they are blurred (radius 11), which
// leaves room for six blocks and more on a multiprocessor. A view in fp32 would not fit it (602 KB), and a cluster that
// held it would leave the resize, which reads crops of any size, waiting for the blur. 32-px views are one tile each,
// with 3 KB between launches. One thread makes 8 rows of a column, so that the resize needs no shared memory, whatever
// the crop's size, and the blur across rows reads each pixel once for 8 outputs.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "core/view_finish.h"
#include "core/view_plan.h"
#include "cuda/multi_tensor.cuh"

namespace ssl_fast::cuda {
namespace {

constexpr int kViewThreads = 128;

// What core/view_weigh.h asks of a block of threads.
class Block {
 public:
  __device__ explicit Block(double* of_warp) : of_warp_(of_warp) {}

  template <typename F>
  __device__ __forceinline__ void each(int n, F f) {
    for (int i = threadIdx.x; i < n; i += kViewThreads) f(i);
    __syncthreads();
  }

  template <typename F>
  __device__ __forceinline__ double sum(int n, F f) {
    double own = 0;
    for (int i = threadIdx.x; i < n; i += kViewThreads) own += f(i);
    return reduce(own, [](double a, double b) { return a + b; });
  }

  template <typename F>
  __device__ __forceinline__ double largest(int n, F f) {
    double own = 0;
    for (int i = threadIdx.x; i < n; i += kViewThreads) own = larger(own, f(i));
    return reduce(own, [](double a, double b) { return larger(a, b); });
  }

  __device__ __forceinline__ bool leader() const { return threadIdx.x == 0; }

  template <typename T>
  __device__ __forceinline__ void store(T* to, float x) const {
    narrow(x, *to);
  }

 private:
  template <typename Join>
  __device__ __forceinline__ double reduce(double own, Join join) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
      own = join(own, __shfl_down_sync(0xffffffffu, own, distance));
    }
    if (threadIdx.x % 32 == 0) of_warp_[threadIdx.x / 32] = own;
    __syncthreads();
    double all = of_warp_[0];
#pragma unroll
    for (int warp = 1; warp < kViewThreads / 32; ++warp) all = join(all, of_warp_[warp]);
    __syncthreads();  // of_warp may be written again
    return all;
  }

  double* of_warp_;
};

__global__ void __launch_bounds__(kViewThreads) weigh_kernel(const __grid_constant__ ViewBatch batch) {
  __shared__ double of_warp[kViewThreads / 32];
  Block block(of_warp);
  weigh(block, batch, blockIdx.x);
}

template <int P>
__global__ void __launch_bounds__(kViewThreads) resize_kernel(const __grid_constant__ ViewBatch batch) {
  __shared__ double of_warp[kViewThreads / 32];
  Block block(of_warp);
  resize_tile<P>(block, batch, blockIdx.x);
}

template <int P, typename T>
__global__ void __launch_bounds__(kViewThreads) finish_kernel(const __grid_constant__ ViewBatch batch) {
  extern __shared__ float shared[];
  Block block(nullptr);  // nothing is summed here
  finish_tile<P, T>(block, batch, blockIdx.x, shared);
}
static_assert(sizeof(ViewBatch) <= kParameterBytes, "");

template <int P, typename T>
void launch(const ViewBatch& batch, int shared_bytes, cudaStream_t stream) {
  const unsigned tiles = unsigned(batch.num_tiles * batch.count);
  weigh_kernel<<<unsigned(batch.num_views * batch.count), kViewThreads, 0, stream>>>(batch);
  resize_kernel<P><<<tiles, kViewThreads, 0, stream>>>(batch);
  finish_kernel<P, T><<<tiles, kViewThreads, shared_bytes, stream>>>(batch);
  DeviceGuard::check(cudaGetLastError());
}

template <int P, typename T>
void launch_all(const ViewBatch& batch, std::int64_t N, cudaStream_t stream) {
  const int bytes = most_shared_floats(batch, P) * int(sizeof(float));
  // More than 48 KB must be asked for; only views beyond 2,600 pixels need it, and 75 KB at most.
  DeviceGuard::check(cudaFuncSetAttribute(finish_kernel<P, T>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  for_each_batch(batch, N, [&](const ViewBatch& part) { launch<P, T>(part, bytes, stream); });
}

template <typename T>
void launch_for(const ViewBatch& batch, std::int64_t N, cudaStream_t stream) {
  batch.channels == 3 ? launch_all<3, T>(batch, N, stream) : launch_all<1, T>(batch, N, stream);
}

}  // namespace

std::int64_t augment_workspace(Address host_table, const Sizes& sizes, const std::vector<bool>& bicubic,
                               const Sizes& blur_radii, std::int64_t N, std::int64_t C) {
  const ViewBatch batch = plan_views(reinterpret_cast<const float*>(host_table), sizes, bicubic, blur_radii, N, C);
  return batch.image_bytes * batch.count;
}

void augment(Address images, Address extents, Address table, Address host_table, Address normalisation,
             const Addresses& outs, const Sizes& sizes, const std::vector<bool>& bicubic, const Sizes& operations,
             const Sizes& blur_radii, const std::vector<double>& thresholds, std::int64_t N, std::int64_t C, int dtype,
             bool channels_last, Address workspace, int device, Address stream) {
  const DeviceGuard guard(device);
  ViewBatch batch = plan_views(reinterpret_cast<const float*>(host_table), sizes, bicubic, blur_radii, N, C);
  batch.images = reinterpret_cast<const std::uint8_t* const*>(images);
  batch.extents = reinterpret_cast<const std::int64_t*>(extents);
  batch.table = reinterpret_cast<const float*>(table);
  batch.normalisation = reinterpret_cast<const float*>(normalisation);
  batch.workspace = reinterpret_cast<char*>(workspace);
  batch.channels_last = channels_last;
  for (int v = 0; v < batch.num_views; ++v) {
    batch.views[v].out = reinterpret_cast<void*>(outs[v]);
    batch.views[v].operations = int(operations[v]);
    batch.views[v].threshold = float(thresholds[v]);
  }
  switch (DType(dtype)) {
    case DType::float32:
      return launch_for<float>(batch, N, as_stream(stream));
    case DType::float16:
      return launch_for<__half>(batch, N, as_stream(stream));
    case DType::bfloat16:
      return launch_for<__nv_bfloat16>(batch, N, as_stream(stream));
    case DType::float64:
      break;
  }
  throw std::invalid_argument("dtype must be float32, float16 or bfloat16");
}

}  // namespace ssl_fast::cuda
