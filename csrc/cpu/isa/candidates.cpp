// Which scores of a row may belong to the best: almost none do, so whole vectors are passed over at once.
#include "cpu/isa/candidates.h"

#include "cpu/isa/vec.h"
#include "cpu/tiles.h"

namespace ssl_fast::SSL_FAST_ISA {
namespace {

template <typename T>
int64_t find(const T* scores, const T* least, T shift, int32_t* found) {
  constexpr int kGroup = 2;  // vectors that are passed over together
  constexpr int64_t kStep = kGroup * kLanes<T>;
  static_assert(kTile % kStep == 0, "a row is made of whole groups");
  int64_t count = 0;
  for (int64_t j = 0; j < kTile; j += kStep) {
    auto below = load(scores + j) - shift <= load(least + j);
#pragma GCC unroll 4
    for (int v = 1; v < kGroup; ++v) {
      below &= load(scores + j + v * kLanes<T>) - shift <= load(least + j + v * kLanes<T>);
    }
    int64_t words[kVecBytes / 8], all = -1;
    __builtin_memcpy(words, &below, sizeof(words));
    for (const int64_t word : words) all &= word;
    if (all == -1) continue;
    for (int64_t lane = j; lane < j + kStep; ++lane) {
      found[count] = static_cast<int32_t>(lane);
      count += !(scores[lane] - shift <= least[lane]);
    }
  }
  return count;
}

}  // namespace

const Candidates<float> candidates32{find<float>};
const Candidates<double> candidates64{find<double>};

}  // namespace ssl_fast::SSL_FAST_ISA
