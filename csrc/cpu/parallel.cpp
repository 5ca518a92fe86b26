#include "cpu/parallel.h"

#include <unistd.h>

#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

namespace ssl_fast {
namespace {

class Pool {
 public:
  const pid_t pid = getpid();

  // False when another caller has the pool.
  bool run(int threads, int64_t num_tasks, void (*body)(void*, int64_t, int), void* context) {
    std::unique_lock<std::mutex> busy(busy_, std::try_to_lock);
    if (!busy) return false;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      grow(threads - 1);
      body_ = body;
      context_ = context;
      num_tasks_ = num_tasks;
      next_task_.store(0, std::memory_order_relaxed);
      next_slot_ = 1;
      wanted_ = threads - 1;
    }
    wake_.notify_all();
    work(0);
    std::unique_lock<std::mutex> lock(mutex_);
    wanted_ = 0;  // who has not woken by now has nothing left to do
    idle_.wait(lock, [this] { return active_ == 0; });
    return true;
  }

 private:
  void grow(int workers) {
    for (; num_workers_ < workers; ++num_workers_) {
      try {
        std::thread([this] { serve(); }).detach();
      } catch (const std::system_error&) {
        return;  // the process may have no more threads: fewer do the work
      }
    }
  }

  void serve() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return wanted_ > 0; });
      --wanted_;
      ++active_;
      const int slot = next_slot_++;
      lock.unlock();
      work(slot);
      lock.lock();
      if (--active_ == 0) idle_.notify_one();
    }
  }

  void work(int slot) {
    for (;;) {
      const int64_t task = next_task_.fetch_add(1, std::memory_order_relaxed);
      if (task >= num_tasks_) return;
      body_(context_, task, slot);
    }
  }

  std::mutex busy_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::condition_variable idle_;
  std::atomic<int64_t> next_task_{0};
  void (*body_)(void*, int64_t, int) = nullptr;
  void* context_ = nullptr;
  int64_t num_tasks_ = 0;
  int num_workers_ = 0;
  int next_slot_ = 1;
  int wanted_ = 0;
  int active_ = 0;
};

// Never destroyed: its threads may still sleep in it when the process ends. A forked child has none of its parent's
// threads (and perhaps a locked mutex), so it gets a pool of its own.
Pool* pool() {
  static std::atomic<Pool*> current{nullptr};
  Pool* found = current.load(std::memory_order_acquire);
  while (found == nullptr || found->pid != getpid()) {
    Pool* fresh = new Pool();
    if (current.compare_exchange_strong(found, fresh)) return fresh;
    delete fresh;
  }
  return found;
}

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

void run_tasks(int threads, int64_t num_tasks, void (*body)(void*, int64_t, int), void* context) {
  if (threads > num_tasks) threads = static_cast<int>(num_tasks);
  if (threads > 1 && pool()->run(threads, num_tasks, body, context)) return;
  for (int64_t task = 0; task < num_tasks; ++task) body(context, task, 0);
}

Tournament::Tournament(int64_t num_blocks)
    : num_blocks_(num_blocks),
      num_rounds_(num_blocks % 2 == 1 ? num_blocks : num_blocks + 1),
      games_(new std::atomic<int64_t>[num_blocks]) {
  for (int64_t block = 0; block < num_blocks; ++block) games_[block].store(0, std::memory_order_relaxed);
}

// Round r of an odd number n of blocks: the pairs with i + j = r mod n, the diagonal pair 2i = r among them.
bool Tournament::pair(int64_t task, int64_t* i, int64_t* j, int64_t* round) const {
  const int64_t n = num_rounds_, games = (n + 1) / 2;
  *round = task / games;
  const int64_t step = task % games;
  const int64_t centre = *round % 2 == 0 ? *round / 2 : (*round + n) / 2;
  const int64_t below = (centre - step + n) % n, above = (centre + step) % n;
  *i = below < above ? below : above;
  *j = below < above ? above : below;
  return *j < num_blocks_;
}

void Tournament::wait(int64_t block, int64_t round) const {
  const bool has_phantom = num_rounds_ != num_blocks_;
  const int64_t round_off = (block + num_blocks_) % num_rounds_;
  const int64_t needed = round - (has_phantom && round_off < round ? 1 : 0);
  for (int spin = 0; games_[block].load(std::memory_order_acquire) < needed; ++spin) {
    if (spin < 2000) {
      pause();
    } else {
      std::this_thread::yield();
    }
  }
}

}  // namespace ssl_fast
