// The Pruner's scores: two passes over a frame's tokens, the first for the anchors, the second
// against them.
#pragma once

#include <cmath>
#include <cstring>

#include "stc/similarity.h"
#include "stc/tokens.h"

namespace stc {
inline namespace STC_ISA {

// So many rows share each load of an anchor and each update of the sum.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kRows = 8;
#else
constexpr int kRows = 4;
#endif

// Rows of one frame, or a part of them. Each is `stride` elements after the one before.
template <typename T>
struct Rows {
  const T* data;
  int64_t stride;
  int64_t count;
  int64_t channels;

  const T* operator[](int64_t i) const { return data + i * stride; }
};

// What the first pass learns of each row.
struct RowSums {
  float* squares;  // ‖z‖²
  float* dots;     // z · temporal anchor; null without one
};

template <int N, bool kDots, bool kTotal, typename T>
STC_INLINE void first_pass_block(const Rows<T>& rows, int64_t first, const float* temporal,
                                 float* total, const RowSums& sums) {
  Floats squares[N] = {}, dots[N] = {};
  const auto step = [&](int64_t c, int64_t lanes) __attribute__((always_inline)) {
    const bool whole = lanes == kLanes;
    Floats anchor = {}, column = {};
    if (kDots) anchor = whole ? load(temporal + c) : load_tail(temporal + c, lanes);
    if (kTotal) column = whole ? load(total + c) : load_tail(total + c, lanes);
    for (int r = 0; r < N; ++r) {
      const T* p = rows[first + r] + c;
      const Floats z = whole ? load(p) : load_tail(p, lanes);
      squares[r] += z * z;
      if (kDots) dots[r] += z * anchor;
      if (kTotal) column += z;
    }
    if (kTotal && whole) store(total + c, column);
    if (kTotal && !whole) store_tail(total + c, column, lanes);
  };
  int64_t c = 0;
  for (; c + kLanes <= rows.channels; c += kLanes) step(c, kLanes);
  if (c < rows.channels) step(c, rows.channels - c);
  for (int r = 0; r < N; ++r) {
    sums.squares[first + r] = sum(squares[r]);
    if (kDots) sums.dots[first + r] = sum(dots[r]);
  }
}

template <bool kDots, bool kTotal, typename T>
STC_INLINE void first_pass(const Rows<T>& rows, const float* temporal, float* total,
                           const RowSums& sums) {
  int64_t r = 0;
  for (; r + kRows <= rows.count; r += kRows)
    first_pass_block<kRows, kDots, kTotal>(rows, r, temporal, total, sums);
  for (; r < rows.count; ++r) first_pass_block<1, kDots, kTotal>(rows, r, temporal, total, sums);
}

template <int N, typename T>
STC_INLINE void add_scaled_block(const Rows<T>& rows, int64_t first, const float* scales,
                                 float* total) {
  const auto step = [&](int64_t c, int64_t lanes) __attribute__((always_inline)) {
    const bool whole = lanes == kLanes;
    Floats column = whole ? load(total + c) : load_tail(total + c, lanes);
    for (int r = 0; r < N; ++r) {
      const T* p = rows[first + r] + c;
      column += (whole ? load(p) : load_tail(p, lanes)) * scales[first + r];
    }
    if (whole) store(total + c, column);
    if (!whole) store_tail(total + c, column, lanes);
  };
  int64_t c = 0;
  for (; c + kLanes <= rows.channels; c += kLanes) step(c, kLanes);
  if (c < rows.channels) step(c, rows.channels - c);
}

inline float unit_scale(float squares) { return 1.0f / std::fmax(std::sqrt(squares), kNormFloor); }

// First pass over some rows of a frame: fills sums, writes to total their sum (of z, or of ẑ for
// the gaussian strategy) over the rows that are finite, and returns how many those are. scales is
// scratch, a value a row.
template <typename T>
int64_t anchor_first_pass(const Rows<T>& rows, Strategy strategy, const float* temporal,
                          float* total, const RowSums& sums, float* scales) {
  const bool gaussian = strategy == Strategy::kGaussian;
  std::memset(total, 0, rows.channels * sizeof(float));
  if (temporal != nullptr) {
    gaussian ? first_pass<true, false>(rows, temporal, total, sums)
             : first_pass<true, true>(rows, temporal, total, sums);
  } else {
    gaussian ? first_pass<false, false>(rows, temporal, total, sums)
             : first_pass<false, true>(rows, temporal, total, sums);
  }
  int64_t finite = 0;
  for (int64_t r = 0; r < rows.count; ++r) finite += sums.squares[r] < kInfinity ? 1 : 0;
  if (!gaussian && finite == rows.count) return finite;
  if (!gaussian) std::memset(total, 0, rows.channels * sizeof(float));
  for (int64_t r = 0; r < rows.count; ++r)
    scales[r] = gaussian ? unit_scale(sums.squares[r]) : 1.0f;
  int64_t r = 0;
  if (finite == rows.count) {
    for (; r + kRows <= rows.count; r += kRows) add_scaled_block<kRows>(rows, r, scales, total);
  }
  for (; r < rows.count; ++r) {
    // NaN times any scale is NaN: a row that is not finite must not be touched at all.
    if (sums.squares[r] < kInfinity) add_scaled_block<1>(rows, r, scales, total);
  }
  return finite;
}

template <int N, typename T>
STC_INLINE void dot_block(const Rows<T>& rows, int64_t first, const float* anchor, float* out) {
  Floats dots[N] = {};
  int64_t c = 0;
  for (; c + kLanes <= rows.channels; c += kLanes) {
    const Floats a = load(anchor + c);
    for (int r = 0; r < N; ++r) dots[r] += load(rows[first + r] + c) * a;
  }
  if (c < rows.channels) {
    const Floats a = load_tail(anchor + c, rows.channels - c);
    for (int r = 0; r < N; ++r) dots[r] += load_tail(rows[first + r] + c, rows.channels - c) * a;
  }
  for (int r = 0; r < N; ++r) out[r] = sum(dots[r]);
}

// Σ over the five bandwidths of exp(-d²/2a): powers of one exponential, as the bandwidths double.
inline float gaussian_closeness(float unit_square, float center_square, float dot) {
  const float distance = unit_square + center_square - 2.0f * dot;
  const double e1 = std::exp(-0.25 * (distance < 0.0f ? 0.0f : distance));  // NaN stays NaN
  const double e2 = e1 * e1, e4 = e2 * e2, e8 = e4 * e4, e16 = e8 * e8;
  return static_cast<float>(e1 + e2 + e4 + e8 + e16);
}

// Second pass over some rows of a frame: scores against the frame's mean and, with sums.dots,
// against the past, which the gaussian strategy has as a unit vector.
template <typename T>
void anchor_second_pass(const Rows<T>& rows, Strategy strategy, float alpha, float rest,
                        const float* mean, float mean_square, float temporal_square,
                        const RowSums& sums, float* scores) {
  float dots[kRows];
  for (int64_t first = 0; first < rows.count;) {
    const bool whole = first + kRows <= rows.count;
    whole ? dot_block<kRows>(rows, first, mean, dots) : dot_block<1>(rows, first, mean, dots);
    for (int i = 0; i < (whole ? kRows : 1); ++i) {
      const int64_t r = first + i;
      const float square = sums.squares[r];
      if (strategy == Strategy::kDualAnchor) {
        const float spatial = 1.0f - cosine_of(dots[i], square, mean_square);
        if (sums.dots == nullptr) {
          scores[r] = spatial;
        } else {
          scores[r] =
              alpha * (1.0f - cosine_of(sums.dots[r], square, temporal_square)) + rest * spatial;
        }
      } else {
        const float scale = unit_scale(square);
        float closeness = gaussian_closeness(square * scale * scale, mean_square, dots[i] * scale);
        if (sums.dots != nullptr) {
          closeness +=
              gaussian_closeness(square * scale * scale, temporal_square, sums.dots[r] * scale);
        }
        scores[r] = -closeness;
      }
    }
    first += whole ? kRows : 1;
  }
}

// Σ v².
inline float square_sum(const float* values, int64_t count) {
  const Rows<float> row = {values, 0, 1, count};
  float out;
  dot_block<1>(row, 0, values, &out);
  return out;
}

// Picks out and converts the channels of one row.
template <typename T>
void pick_channels(const T* row, const int64_t* channels, int64_t count, float* out) {
  for (int64_t c = 0; c < count; ++c) out[c] = to_float(row[channels[c]]);
}

}  // namespace STC_ISA
}  // namespace stc
