// Threads of the CPU kernels: a small pool of our own, so that no second OpenMP runtime is loaded.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <type_traits>

namespace ssl_fast {

// body(context, task, slot) for every task in [0, num_tasks), started in increasing order, by at most `threads`
// threads. slot < threads names the thread: index scratch memory by it. Tasks must not throw. Works in a forked child;
// a call made while the pool is busy runs on the caller alone.
void run_tasks(int threads, int64_t num_tasks, void (*body)(void* context, int64_t task, int slot), void* context);

template <typename Body>
void parallel_for(int threads, int64_t num_tasks, Body&& body) {
  using Callable = std::remove_reference_t<Body>;
  run_tasks(
      threads, num_tasks, [](void* context, int64_t task, int slot) { (*static_cast<Callable*>(context))(task, slot); },
      const_cast<void*>(static_cast<const void*>(&body)));
}

// All unordered pairs of blocks (i, j), i == j included, as tasks of a round-robin tournament: in one round no block
// occurs twice. A task starts when both of its blocks have finished their earlier rounds, so every block sees its
// updates in the order of the rounds: the bits do not depend on the number of threads.
class Tournament {
 public:
  explicit Tournament(int64_t num_blocks);
  int64_t num_tasks() const { return num_rounds_ * ((num_rounds_ + 1) / 2); }
  // Waits for the blocks of `task`, then body(i, j) with i <= j, then lets the next rounds go on.
  template <typename Body>
  void play(int64_t task, Body&& body) {
    int64_t i, j, round;
    if (!pair(task, &i, &j, &round)) return;
    wait(i, round);
    wait(j, round);
    body(i, j);
    games_[i].fetch_add(1, std::memory_order_release);
    if (i != j) games_[j].fetch_add(1, std::memory_order_release);
  }

 private:
  bool pair(int64_t task, int64_t* i, int64_t* j, int64_t* round) const;
  void wait(int64_t block, int64_t round) const;

  int64_t num_blocks_;
  int64_t num_rounds_;  // odd; one more than num_blocks_ when that is even: meeting the phantom block is a round off
  std::unique_ptr<std::atomic<int64_t>[]> games_;  // [num_blocks] rounds a block has finished
};

}  // namespace ssl_fast
