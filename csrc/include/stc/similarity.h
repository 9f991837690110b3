// Similarity of two tokens: one pass over both, sums in float32.
#pragma once

#include <cmath>

#include "stc/simd.h"
#include "stc/tokens.h"

namespace stc {
inline namespace STC_ISA {

// Not a number where a norm is not finite: a token whose squares overflow is garbage too.
STC_INLINE float cosine_of(float dot, float square_a, float square_b) {
  const float norms =
      std::fmax(std::sqrt(square_a), kNormFloor) * std::fmax(std::sqrt(square_b), kNormFloor);
  return square_a < kInfinity && square_b < kInfinity ? dot / norms : kNaN;
}

template <typename T>
STC_INLINE float cosine(const T* a, const T* b, int64_t channels) {
  Floats ab[2] = {}, aa[2] = {}, bb[2] = {};
  int64_t c = 0;
  for (; c + 2 * kLanes <= channels; c += 2 * kLanes) {
    for (int i = 0; i < 2; ++i) {
      const Floats va = load(a + c + i * kLanes), vb = load(b + c + i * kLanes);
      ab[i] += va * vb;
      aa[i] += va * va;
      bb[i] += vb * vb;
    }
  }
  for (; c < channels; c += kLanes) {
    const int64_t left = channels - c;
    const Floats va = left < kLanes ? load_tail(a + c, left) : load(a + c);
    const Floats vb = left < kLanes ? load_tail(b + c, left) : load(b + c);
    ab[0] += va * vb;
    aa[0] += va * va;
    bb[0] += vb * vb;
  }
  return cosine_of(sum(ab[0] + ab[1]), sum(aa[0] + aa[1]), sum(bb[0] + bb[1]));
}

// Sum over the channels of combine(a, b).
template <typename T, typename Combine>
STC_INLINE float reduce(const T* a, const T* b, int64_t channels, Combine combine) {
  Floats total[4] = {};
  int64_t c = 0;
  for (; c + 4 * kLanes <= channels; c += 4 * kLanes) {
    for (int i = 0; i < 4; ++i)
      total[i] += combine(load(a + c + i * kLanes), load(b + c + i * kLanes));
  }
  for (; c < channels; c += kLanes) {
    const int64_t left = channels - c;
    total[0] += left < kLanes ? combine(load_tail(a + c, left), load_tail(b + c, left))
                              : combine(load(a + c), load(b + c));
  }
  return sum((total[0] + total[1]) + (total[2] + total[3]));
}

template <typename T>
STC_INLINE float similarity(const T* a, const T* b, int64_t channels, Metric metric) {
  switch (metric) {
    case Metric::kCosine:
      return cosine(a, b, channels);
    case Metric::kDot:
      return reduce(a, b, channels,
                    [](Floats x, Floats y) __attribute__((always_inline)) { return x * y; });
    case Metric::kL1:
      return -reduce(a, b, channels, [](Floats x, Floats y) __attribute__((always_inline)) {
        return absolute(x - y);
      });
    default:
      return -std::sqrt(reduce(a, b, channels,
                               [](Floats x, Floats y)
                                   __attribute__((always_inline)) { return (x - y) * (x - y); }));
  }
}

// Rows begin..end of the F·T rows.
template <typename T>
void similarity_rows(const Tokens& current, const Tokens& reference, const int64_t* reference_index,
                     Metric metric, float* out, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const int64_t frame = row / current.tokens, token = row % current.tokens;
    const int64_t held_against = reference_of(reference_index, reference.frames, frame);
    out[row] = similarity(current.row<T>(frame, token), reference.row<T>(held_against, token),
                          current.channels, metric);
  }
}

}  // namespace STC_ISA
}  // namespace stc
