// The variance of every channel over many rows.
#pragma once

#include <cstring>

#include "stc/simd.h"
#include "stc/tokens.h"

namespace stc {
inline namespace STC_ISA {

// Variances (biased) of channels begin..end over all rows, summed in float64 about the first row's
// value, so that a large mean cancels nothing. sums is scratch for 2 · (end - begin) doubles.
template <typename T>
void channel_variance(const Tokens& tokens, int64_t begin, int64_t end, double* sums,
                      float* variance) {
  const int64_t width = end - begin, rows = tokens.frames * tokens.tokens;
  double* first = sums;
  double* second = sums + width;
  std::memset(sums, 0, 2 * width * sizeof(double));
  const T* origin = tokens.row<T>(0, 0) + begin;
  for (int64_t row = 0; row < rows; ++row) {
    const T* p = tokens.row<T>(row / tokens.tokens, row % tokens.tokens) + begin;
    int64_t c = 0;
    for (; c + kLanes <= width; c += kLanes) {
      const Doubles d = __builtin_convertvector(load(p + c), Doubles) -
                        __builtin_convertvector(load(origin + c), Doubles);
      Doubles s, q;
      std::memcpy(&s, first + c, sizeof(s));
      std::memcpy(&q, second + c, sizeof(q));
      s += d;
      q += d * d;
      std::memcpy(first + c, &s, sizeof(s));
      std::memcpy(second + c, &q, sizeof(q));
    }
    for (; c < width; ++c) {
      const double d =
          static_cast<double>(to_float(p[c])) - static_cast<double>(to_float(origin[c]));
      first[c] += d;
      second[c] += d * d;
    }
  }
  const double count = static_cast<double>(rows);
  for (int64_t c = 0; c < width; ++c) {
    variance[c] = static_cast<float>((second[c] - first[c] * first[c] / count) / count);
  }
}

}  // namespace STC_ISA
}  // namespace stc
