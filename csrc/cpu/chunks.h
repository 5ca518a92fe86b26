// Tensors cut into chunks of one size, which are the tasks of the threads and the terms of every sum: the bits do not
// depend on the number of threads.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <string>

#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "ops.h"

// The table of this name compiled for the instruction set that runs.
#ifdef SSL_FAST_HAS_avx512
#define SSL_FAST_IF_AVX512(name) chosen_isa() == Isa::avx512 ? avx512::name:
#else
#define SSL_FAST_IF_AVX512(name)
#endif
#ifdef SSL_FAST_HAS_avx2
#define SSL_FAST_IF_AVX2(name) chosen_isa() == Isa::avx2 ? avx2::name:
#else
#define SSL_FAST_IF_AVX2(name)
#endif
#define SSL_FAST_PICK(name) (SSL_FAST_IF_AVX512(name) SSL_FAST_IF_AVX2(name) generic::name)

namespace ssl_fast {

constexpr std::int64_t kChunk = 1 << 14;        // elements
constexpr std::int64_t kCachedBytes = 8 << 20;  // that two passes over the same tensors may share

inline std::int64_t element_size(int dtype) {
  switch (static_cast<DType>(dtype)) {
    case DType::float32:
      return 4;
    case DType::float64:
      return 8;
    case DType::bfloat16:
    case DType::float16:
      return 2;
  }
  throw std::invalid_argument("dtype must be 0, 1, 2 or 3, got " + std::to_string(dtype));
}

struct Chunk {
  std::size_t tensor;
  std::int64_t begin, size;  // elements
};

// Chunks of the tensors first, first + 1, ... last - 1.
inline std::vector<Chunk> cut(const Sizes& sizes, std::size_t first, std::size_t last) {
  std::vector<Chunk> chunks;
  for (std::size_t i = first; i < last; ++i) {
    for (std::int64_t begin = 0; begin < sizes[i]; begin += kChunk) {
      chunks.push_back({i, begin, std::min(kChunk, sizes[i] - begin)});
    }
  }
  return chunks;
}

inline void* at(Address base, std::int64_t offset) { return reinterpret_cast<void*>(base + std::uintptr_t(offset)); }

// body(chunk) for every chunk of all tensors.
template <typename Body>
void for_each_chunk(const Sizes& sizes, int threads, const Body& body) {
  const std::vector<Chunk> chunks = cut(sizes, 0, sizes.size());
  parallel_for(threads, std::int64_t(chunks.size()), [&](std::int64_t task, int) { body(chunks[task]); });
}

// One past the last of the tensors from `first` on that fit the cache together, at least one; `bytes_each`: what the
// first pass reads of an element and the second reads again.
inline std::size_t cached_run(const Sizes& sizes, std::size_t first, std::int64_t bytes_each) {
  std::int64_t bytes = 0;
  std::size_t last = first;
  while (last < sizes.size() && (last == first || bytes + bytes_each * sizes[last] <= kCachedBytes)) {
    bytes += bytes_each * sizes[last++];
  }
  return last;
}

}  // namespace ssl_fast
