// Exact k nearest neighbours: tiles of scores, of which each query keeps the best in a buffer. Neighbours are ordered
// by score and then by index, and that order is total: how the gallery is cut up, and among how many threads, changes
// no bit of the answer.
#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "cpu/buffer.h"
#include "cpu/contrast.h"
#include "cpu/isa.h"
#include "cpu/isa/candidates.h"
#include "cpu/parallel.h"
#include "cpu/tiles.h"
#include "ops.h"

namespace ssl_fast {
namespace {

enum class Metric : int { cosine = 0, dot = 1, l2 = 2 };

template <typename T>
const Candidates<T>& candidates() {
  const auto of = [](const Candidates<float>& single, const Candidates<double>& both) -> const auto& {
    if constexpr (sizeof(T) == 4) {
      return single;
    } else {
      return both;
    }
  };
  switch (chosen_isa()) {
#ifdef SSL_FAST_HAS_avx512
    case Isa::avx512:
      return of(avx512::candidates32, avx512::candidates64);
#endif
#ifdef SSL_FAST_HAS_avx2
    case Isa::avx2:
      return of(avx2::candidates32, avx2::candidates64);
#endif
    default:
      return of(generic::candidates32, generic::candidates64);
  }
}

template <typename T, typename Index>
struct Neighbour {
  T score;
  Index index;
  bool operator<(const Neighbour& other) const {  // comes before it
    return score > other.score || (score == other.score && index < other.index);
  }
};

template <typename T>
using Found = Neighbour<T, int32_t>;  // index: within the split of the gallery

// The k best of a stream of scores, for each query of a few tiles: a buffer takes what may belong to them, and is cut
// down to k when it is full. least[j] is then the score to beat: the stream's indices rise, so an equal score is later.
template <typename T>
struct Best {
  Best(int64_t num_queries, int64_t k)
      : k(k),
        capacity(std::max(2 * k, k + 64)),
        count(num_queries),
        least(num_queries),
        buffer(num_queries * capacity) {}

  // Queries from `num_queries` on do not exist: nothing is asked of them.
  void clear(int64_t num_queries, int64_t padded) {
    std::fill_n(count.get(), padded, 0);
    std::fill_n(least.get(), num_queries, std::numeric_limits<T>::quiet_NaN());  // anything is a candidate
    std::fill(least.get() + num_queries, least.get() + padded, std::numeric_limits<T>::infinity());
  }

  void add(int64_t j, T score, int32_t index) {
    if (score != score) score = -std::numeric_limits<T>::infinity();
    row(j)[count[j]++] = {score, index};
    if (count[j] == capacity) least[j] = cut(j);
  }

  // Keeps the best k of query j and returns the score of the last of them.
  T cut(int64_t j) {
    Found<T>* const found = row(j);
    if (count[j] > k) {
      std::nth_element(found, found + k - 1, found + count[j]);
      count[j] = k;
    }
    return found[k - 1].score;
  }

  Found<T>* row(int64_t j) { return buffer.get() + j * capacity; }

  const int64_t k, capacity;
  Buffer<int64_t> count;    // [num_queries]
  Buffer<T> least;          // [num_queries]
  Buffer<Found<T>> buffer;  // [num_queries, capacity]
};

template <typename T>
struct Search {
  Search(Address queries, DType query_dtype, Address gallery, DType gallery_dtype, int64_t Q, int64_t N, int64_t D,
         int64_t k, Metric metric, int threads)
      : t(tiles<T>()),
        find(candidates<T>().find),
        gallery(reinterpret_cast<const char*>(gallery)),
        dtype(gallery_dtype),
        Q(Q),
        N(N),
        D(D),
        k(k),
        ld(row_stride(t, D)),
        metric(metric),
        group(group_size(num_tiles(Q), k, threads)),
        groups((num_tiles(Q) + group - 1) / group),
        splits(num_splits(groups, N, threads)),
        panels(round_up(Q, kTile) * D),
        squares(Q),
        count(splits * Q),
        best(splits * Q * k) {
    Buffer<T> scratch(threads * kTile * ld);
    parallel_for(threads, num_tiles(Q), [&](int64_t tile, int slot) {
      const int64_t begin = tile * kTile, rows = std::min(kTile, Q - begin);
      T* const loaded = scratch.get() + slot * kTile * ld;
      const auto* from = reinterpret_cast<const char*>(queries) + begin * D * element_size(query_dtype);
      load(from, query_dtype, rows, loaded, squares.get() + begin);
      t.pack_panels(loaded, ld, rows, D, panels.get() + begin * D);
    });
  }

  // Tiles of queries that share a loaded tile of the gallery: as many as leave work for all threads, and whose buffers
  // stay below 32 MiB.
  static int64_t group_size(int64_t query_tiles, int64_t k, int threads) {
    const int64_t by_memory = (int64_t{32} << 20) / (kTile * 2 * k * static_cast<int64_t>(sizeof(Found<T>)));
    return std::clamp<int64_t>(std::min(by_memory, query_tiles / (2 * threads)), 1, 8);
  }

  // Pieces of the gallery searched on their own: where there are few groups, so that every thread has work.
  static int64_t num_splits(int64_t groups, int64_t N, int threads) {
    const int64_t wanted = threads == 1 ? 1 : (8 * threads + groups - 1) / groups;
    const int64_t least = N / (int64_t{1} << 30) + 1;  // an index within a split is 32 bits
    return std::max(least, std::min(wanted, (N + 16 * kTile - 1) / (16 * kTile)));
  }

  static int64_t element_size(DType dtype) { return dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2; }

  // Rows [kTile, ld], at unit length for the cosine, with their squared lengths for l2.
  void load(const char* from, DType type, int64_t num_rows, T* rows, T* squares_of_rows) const {
    const bool normalize = metric == Metric::cosine;
    t.load_rows(from, type, num_rows, D, normalize, rows, ld, normalize ? squares_of_rows : nullptr);
    for (int64_t r = 0; metric == Metric::l2 && r < num_rows; ++r) {
      squares_of_rows[r] = t.dot(rows + r * ld, rows + r * ld, ld);
    }
  }

  struct Scratch {
    Scratch(int64_t num_queries, int64_t k, int64_t ld)
        : rows(kTile * ld), squares(kTile), tile(kTile * kTile), found(kTile), best(num_queries, k) {}
    Buffer<T> rows, squares, tile;
    Buffer<int32_t> found;
    Best<T> best;
  };

  void search(int64_t task, Scratch& s) {
    const int64_t split = task / groups, first_query = task % groups * group * kTile;
    const int64_t num_queries = std::min(Q - first_query, group * kTile);
    const int64_t begin = N * split / splits, end = N * (split + 1) / splits;
    s.best.clear(num_queries, round_up(num_queries, kTile));
    for (int64_t first = begin; first < end; first += kTile) {
      const int64_t rows = std::min(kTile, end - first);
      load(gallery + first * D * element_size(dtype), dtype, rows, s.rows.get(), s.squares.get());
      for (int64_t q = 0; q < num_queries; q += kTile) {
        t.scores(s.rows.get(), ld, rows, panels.get() + (first_query + q) * D, std::min(kTile, num_queries - q), D,
                 s.tile.get());
        collect(s, rows, q, num_queries, first - begin);
      }
    }
    for (int64_t q = 0; q < num_queries; ++q) {
      s.best.cut(q);
      const int64_t at = split * Q + first_query + q;
      count[at] = s.best.count[q];
      std::copy_n(s.best.row(q), count[at], best.get() + at * k);
    }
  }

  void collect(Scratch& s, int64_t rows, int64_t q, int64_t num_queries, int64_t first) {
    for (int64_t r = 0; r < rows; ++r) {
      const T* const scores = s.tile.get() + r * kTile;
      const T shift = metric == Metric::l2 ? s.squares[r] / 2 : T(0);
      const int64_t hits = find(scores, s.best.least.get() + q, shift, s.found.get());
      for (int64_t hit = 0; hit < hits && q + s.found[hit] < num_queries; ++hit) {
        const int64_t j = s.found[hit];
        s.best.add(q + j, scores[j] - shift, static_cast<int32_t>(first + r));
      }
    }
  }

  // The splits' best of query q put together: values and indices [k].
  void finish(int64_t q, std::vector<Neighbour<T, int64_t>>& all, T* values, int64_t* indices) const {
    all.clear();
    for (int64_t split = 0; split < splits; ++split) {
      const Found<T>* const found = best.get() + (split * Q + q) * k;
      for (int64_t i = 0; i < count[split * Q + q]; ++i) {
        all.push_back({found[i].score, N * split / splits + found[i].index});
      }
    }
    std::nth_element(all.begin(), all.begin() + (k - 1), all.end());
    std::sort(all.begin(), all.begin() + k);
    for (int64_t i = 0; i < k; ++i) {
      const T score = all[i].score;
      values[i] = metric == Metric::l2 ? std::max(T(0), squares[q] - 2 * score) : score;
      indices[i] = all[i].index;
    }
  }

  const Tiles<T>& t;
  int64_t (*const find)(const T*, const T*, T, int32_t*);
  const char* const gallery;  // [N, D]
  const DType dtype;
  const int64_t Q, N, D, k, ld;
  const Metric metric;
  const int64_t group, groups, splits;
  Buffer<T> panels;       // of the queries
  Buffer<T> squares;      // [Q] for l2
  Buffer<int64_t> count;  // [splits, Q]
  Buffer<Found<T>> best;  // [splits, Q, k]
};

template <typename T>
void run(Address queries, DType query_dtype, Address gallery, DType gallery_dtype, int64_t Q, int64_t N, int64_t D,
         int64_t k, Metric metric, Address values, Address indices, int threads) {
  Search<T> search(queries, query_dtype, gallery, gallery_dtype, Q, N, D, k, metric, threads);
  {
    std::vector<std::unique_ptr<typename Search<T>::Scratch>> scratch(threads);
    const int64_t num_queries = std::min(search.group * kTile, round_up(Q, kTile));
    for (auto& one : scratch) one = std::make_unique<typename Search<T>::Scratch>(num_queries, k, search.ld);
    parallel_for(threads, search.groups * search.splits,
                 [&](int64_t task, int slot) { search.search(task, *scratch[slot]); });
  }
  std::vector<std::vector<Neighbour<T, int64_t>>> all(threads);
  for (auto& one : all) one.reserve(search.splits * k);  // tasks must not throw
  parallel_for(threads, Q, [&](int64_t q, int slot) {
    search.finish(q, all[slot], reinterpret_cast<T*>(values) + q * k, reinterpret_cast<int64_t*>(indices) + q * k);
  });
}

}  // namespace

void knn_topk(Address queries, int query_dtype, Address gallery, int gallery_dtype, int64_t Q, int64_t N, int64_t D,
              int64_t k, int metric, Address values, Address indices, int threads) {
  if (Q == 0) return;
  const auto of_queries = static_cast<DType>(query_dtype), of_gallery = static_cast<DType>(gallery_dtype);
  const bool wide = of_queries == DType::float64 || of_gallery == DType::float64;
  const auto search = wide ? run<double> : run<float>;
  search(queries, of_queries, gallery, of_gallery, Q, N, D, k, static_cast<Metric>(metric), values, indices, threads);
}

}  // namespace ssl_fast
