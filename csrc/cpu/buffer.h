// Aligned memory for the kernels' working sets. Throws std::bad_alloc, which becomes Python's MemoryError.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <utility>

namespace ssl_fast {

inline int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// Where a thread's small buffers lie, one on the other: a call with few rows takes a few microseconds, of which malloc
// would be a third (freed blocks of this size go back to the system, and make every other block's way longer).
class Arena {
 public:
  static constexpr int64_t kBytes = int64_t{1} << 20;

  // Null where there is no room.
  void* take(int64_t bytes) {
    if (memory_ == nullptr) memory_.reset(static_cast<char*>(std::aligned_alloc(64, kBytes)));
    if (memory_ == nullptr || used_ + bytes > kBytes) return nullptr;
    ++num_blocks_;
    used_ += bytes;
    return memory_.get() + used_ - bytes;
  }
  bool owns(const void* block) const {
    const auto* at = static_cast<const char*>(block);
    return memory_ != nullptr && at >= memory_.get() && at < memory_.get() + kBytes;
  }
  // Blocks below the top come back with the last one.
  void give_back(const void* block, int64_t bytes) {
    const int64_t begin = static_cast<const char*>(block) - memory_.get();
    if (begin + bytes == used_) used_ = begin;
    if (--num_blocks_ == 0) used_ = 0;
  }
  static Arena& mine() {
    static thread_local Arena arena;
    return arena;
  }

 private:
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  std::unique_ptr<char, Free> memory_;
  int64_t used_ = 0, num_blocks_ = 0;
};

// Made and destroyed by the same thread.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t size)
      : bytes_(round_up(size * sizeof(T) + 64, 64)), data_(static_cast<T*>(Arena::mine().take(bytes_))) {
    if (data_ == nullptr) data_ = static_cast<T*>(std::aligned_alloc(64, bytes_));
    if (data_ == nullptr) throw std::bad_alloc();
  }
  Buffer(int64_t size, T value) : Buffer(size) {
    for (int64_t i = 0; i < size; ++i) data_[i] = value;
  }
  ~Buffer() {
    Arena& arena = Arena::mine();
    arena.owns(data_) ? arena.give_back(data_, bytes_) : std::free(data_);
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }

  T* get() { return data_; }
  const T* get() const { return data_; }
  T& operator[](int64_t i) { return data_[i]; }
  const T& operator[](int64_t i) const { return data_[i]; }

 private:
  int64_t bytes_;
  T* data_;
};

}  // namespace ssl_fast
