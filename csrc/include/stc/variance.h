// The variance of every channel over many rows.
#pragma once

#include <cstring>

#include "stc/simd.h"
#include "stc/tokens.h"

namespace stc {
inline namespace STC_ISA {

// So many rows share each load and store of the running sums.
constexpr int kSummedRows = 4;

// Adds N rows' differences to the origin, and the squares of these, to the sums of their channels.
template <int N, typename T>
STC_INLINE void add_differences(const T* const* rows, const T* origin, int64_t width, double* first,
                                double* second) {
  int64_t c = 0;
  for (; c + kLanes <= width; c += kLanes) {
    const Doubles zero = __builtin_convertvector(load(origin + c), Doubles);
    Doubles s, q;
    std::memcpy(&s, first + c, sizeof(s));
    std::memcpy(&q, second + c, sizeof(q));
    for (int r = 0; r < N; ++r) {
      const Doubles d = __builtin_convertvector(load(rows[r] + c), Doubles) - zero;
      s += d;
      q += d * d;
    }
    std::memcpy(first + c, &s, sizeof(s));
    std::memcpy(second + c, &q, sizeof(q));
  }
  for (; c < width; ++c) {
    for (int r = 0; r < N; ++r) {
      const double d =
          static_cast<double>(to_float(rows[r][c])) - static_cast<double>(to_float(origin[c]));
      first[c] += d;
      second[c] += d * d;
    }
  }
}

// Variances (biased) of channels begin..end over all rows, summed in float64 about the first row's
// value, so that a large mean cancels nothing. sums is scratch for 2 · (end - begin) doubles.
template <typename T>
void channel_variance(const Tokens& tokens, int64_t begin, int64_t end, double* sums,
                      float* variance) {
  const int64_t width = end - begin, count = tokens.frames * tokens.tokens;
  double* first = sums;
  double* second = sums + width;
  std::memset(sums, 0, 2 * width * sizeof(double));
  const T* origin = tokens.row<T>(0, 0) + begin;
  const auto at = [&](int64_t row) {
    return tokens.row<T>(row / tokens.tokens, row % tokens.tokens) + begin;
  };
  int64_t row = 0;
  for (; row + kSummedRows <= count; row += kSummedRows) {
    const T* rows[kSummedRows];
    for (int r = 0; r < kSummedRows; ++r) rows[r] = at(row + r);
    add_differences<kSummedRows>(rows, origin, width, first, second);
  }
  for (; row < count; ++row) {
    const T* rows[1] = {at(row)};
    add_differences<1>(rows, origin, width, first, second);
  }
  const double n = static_cast<double>(count);
  for (int64_t c = 0; c < width; ++c) {
    variance[c] = static_cast<float>((second[c] - first[c] * first[c] / n) / n);
  }
}

}  // namespace STC_ISA
}  // namespace stc
