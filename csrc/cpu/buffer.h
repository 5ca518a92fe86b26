// Aligned memory for the kernels' working sets. Throws std::bad_alloc, which becomes Python's MemoryError.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>
#include <utility>

namespace ssl_fast {

inline int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t size) : data_(static_cast<T*>(std::aligned_alloc(64, round_up(size * sizeof(T) + 64, 64)))) {
    if (data_ == nullptr) throw std::bad_alloc();
  }
  Buffer(int64_t size, T value) : Buffer(size) {
    for (int64_t i = 0; i < size; ++i) data_[i] = value;
  }
  ~Buffer() { std::free(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    return *this;
  }

  T* get() { return data_; }
  const T* get() const { return data_; }
  T& operator[](int64_t i) { return data_[i]; }
  const T& operator[](int64_t i) const { return data_[i]; }

 private:
  T* data_;
};

}  // namespace ssl_fast
