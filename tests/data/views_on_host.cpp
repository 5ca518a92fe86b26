// Runs the bodies of the CUDA kernels for augmented views (csrc/core/view_*.h) on a CPU: four threads are a block, as
// csrc/cuda/augment.cu has it. Under the thread sanitizer it finds races, under the address sanitizer what is out of
// bounds: every image, the workspace and the shared memory are allocations of their own.
//
//     views_on_host INPUT OUTPUT
//
// INPUT: int64 N, C, V, channels last, images a batch (0: as planned); [V] int64 sizes, bicubic, operations, radii; [V]
// float64 thresholds; float32 normalisation [V, 2, C] and table [N, V, kColumns]; [N, 2] int64 extents; the images.
// OUTPUT: V tensors of float32.
#include <pthread.h>

#include <cstdint>
#include <cstdio>
#include <limits>
#include <memory>
#include <thread>
#include <vector>

#include "core/view_finish.h"
#include "core/view_plan.h"

using namespace ssl_fast;

namespace {

constexpr int kThreads = 4;

// What the threads of a block have in common.
struct Common {
  pthread_barrier_t barrier;
  double partial[kThreads];
  std::unique_ptr<float[]> shared;
};

class Block {
 public:
  Block(Common& common, int thread) : common_(common), thread_(thread) {}

  void wait() { pthread_barrier_wait(&common_.barrier); }

  template <typename F>
  void each(int n, F f) {
    for (int i = thread_; i < n; i += kThreads) f(i);
    wait();
  }

  template <typename F>
  double sum(int n, F f) {
    double own = 0;
    for (int i = thread_; i < n; i += kThreads) own += f(i);
    return reduce(own, [](double a, double b) { return a + b; });
  }

  template <typename F>
  double largest(int n, F f) {
    double own = 0;
    for (int i = thread_; i < n; i += kThreads) own = larger(own, f(i));
    return reduce(own, [](double a, double b) { return larger(a, b); });
  }

  bool leader() const { return thread_ == 0; }
  void store(float* to, float x) const { *to = x; }

 private:
  template <typename Join>
  double reduce(double own, Join join) {
    common_.partial[thread_] = own;
    wait();
    double all = common_.partial[0];
    for (int i = 1; i < kThreads; ++i) all = join(all, common_.partial[i]);
    wait();
    return all;
  }

  Common& common_;
  int thread_;
};

// One launch: body(block, index, shared memory) of every block, one after another. What a block finds in shared memory
// is no number.
template <typename Body>
void launch(std::int64_t blocks, int floats, Body body) {
  Common common;
  pthread_barrier_init(&common.barrier, nullptr, kThreads);
  std::vector<std::thread> threads;
  for (int thread = 0; thread < kThreads; ++thread) {
    threads.emplace_back([&, thread] {
      Block block(common, thread);
      for (std::int64_t index = 0; index < blocks; ++index) {
        if (thread == 0) {
          common.shared.reset(new float[floats]);
          std::fill(common.shared.get(), common.shared.get() + floats, std::numeric_limits<float>::quiet_NaN());
        }
        block.wait();
        body(block, index, common.shared.get());
        block.wait();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  pthread_barrier_destroy(&common.barrier);
}

template <typename T>
std::vector<T> read(std::FILE* file, std::int64_t count) {
  std::vector<T> values(count);
  if (std::fread(values.data(), sizeof(T), count, file) != std::size_t(count)) std::abort();
  return values;
}

template <int P>
void make(const ViewBatch& batch) {
  std::fill(batch.workspace, batch.workspace + batch.image_bytes * batch.count, char(0xff));
  launch(batch.num_views * batch.count, 0, [&](Block& block, std::int64_t i, float*) { weigh(block, batch, i); });
  const std::int64_t tiles = batch.num_tiles * batch.count;
  launch(tiles, 0, [&](Block& block, std::int64_t i, float*) { resize_tile<P>(block, batch, i); });
  launch(tiles, most_shared_floats(batch, P),
         [&](Block& block, std::int64_t i, float* shared) { finish_tile<P, float>(block, batch, i, shared); });
}

}  // namespace

int main(int, char** arguments) {
  std::FILE* file = std::fopen(arguments[1], "rb");
  const auto header = read<std::int64_t>(file, 5);
  const std::int64_t N = header[0], C = header[1], V = header[2];
  const auto sizes = read<std::int64_t>(file, V), bicubic = read<std::int64_t>(file, V);
  const auto operations = read<std::int64_t>(file, V), radii = read<std::int64_t>(file, V);
  const auto thresholds = read<double>(file, V);
  const auto normalisation = read<float>(file, V * 2 * C), table = read<float>(file, N * V * kColumns);
  const auto extents = read<std::int64_t>(file, N * 2);
  std::vector<std::vector<std::uint8_t>> images;
  std::vector<const std::uint8_t*> addresses;
  for (std::int64_t n = 0; n < N; ++n) {
    images.push_back(read<std::uint8_t>(file, extents[2 * n] * extents[2 * n + 1] * C));
    addresses.push_back(images.back().data());
  }
  std::fclose(file);

  ViewBatch batch = plan_views(table.data(), sizes, {bicubic.begin(), bicubic.end()}, radii, N, C);
  if (header[4] > 0) batch.count = std::min(batch.count, header[4]);
  std::unique_ptr<char[]> workspace(new char[batch.image_bytes * batch.count]);
  batch.images = addresses.data();
  batch.extents = extents.data();
  batch.table = table.data();
  batch.normalisation = normalisation.data();
  batch.workspace = workspace.get();
  batch.channels_last = header[3] != 0;
  std::vector<std::unique_ptr<float[]>> outs;
  for (std::int64_t v = 0; v < V; ++v) {
    outs.emplace_back(new float[N * C * sizes[v] * sizes[v]]);
    batch.views[v].out = outs.back().get();
    batch.views[v].operations = int(operations[v]);
    batch.views[v].threshold = float(thresholds[v]);
  }
  for_each_batch(batch, N, [&](const ViewBatch& part) { C == 3 ? make<3>(part) : make<1>(part); });

  file = std::fopen(arguments[2], "wb");
  for (std::int64_t v = 0; v < V; ++v) std::fwrite(outs[v].get(), 4, N * C * sizes[v] * sizes[v], file);
  std::fclose(file);
  return 0;
}
