// Choice of the k highest or lowest scores of a frame, without a sort.
#pragma once

#include <cstdint>

#include "stc/dtype.h"

namespace stc {
inline namespace STC_ISA {

// A key orders scores as unsigned integers, the soonest chosen lowest; a score that is not finite
// counts as -inf.
inline uint32_t selection_key(float score, bool largest) {
  const uint32_t exponent = to_bits(score) & 0x7f800000u;
  const uint32_t finite =
      exponent == 0x7f800000u ? 0xff800000u : to_bits(score + 0.0f);  // -0 ties with 0
  const uint32_t ascending = finite & 0x80000000u ? ~finite : finite | 0x80000000u;
  return largest ? ~ascending : ascending;
}

// The k-th lowest key, found bit by bit: counting is a plain loop over integers, which compilers
// vectorise.
inline uint32_t kth_lowest(const uint32_t* keys, int64_t count, int64_t k) {
  uint32_t found = 0;
  for (int bit = 31; bit >= 0; --bit) {
    const uint32_t candidate = found | (1u << bit);
    uint32_t below = 0;
    for (int64_t i = 0; i < count; ++i) below += keys[i] < candidate ? 1u : 0u;
    if (below < k) found = candidate;
  }
  return found;
}

// Writes the places of the k chosen scores to index, ascending, and to slot (if given) each token's
// place in index or -1. keys is scratch for `tokens` values. Ties go to the lower index.
inline void select_scores(const float* scores, int64_t tokens, int64_t k, bool largest,
                          int64_t* index, int32_t* slot, uint32_t* keys) {
  for (int64_t t = 0; t < tokens; ++t) keys[t] = selection_key(scores[t], largest);
  const uint32_t last = kth_lowest(keys, tokens, k);
  int64_t before = 0;
  for (int64_t t = 0; t < tokens; ++t) before += keys[t] < last ? 1 : 0;
  int64_t ties = k - before;  // how many of those equal to the last are still wanted
  int64_t place = 0;
  for (int64_t t = 0; t < tokens; ++t) {
    const bool tied = keys[t] == last && ties > 0;
    ties -= tied ? 1 : 0;
    const bool chosen = keys[t] < last || tied;
    if (slot != nullptr) slot[t] = chosen ? static_cast<int32_t>(place) : -1;
    if (chosen) index[place++] = t;
  }
}

}  // namespace STC_ISA
}  // namespace stc
