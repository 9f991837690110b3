// Gathering chosen rows, and merging recomputed rows with reused ones.
#pragma once

#include <cstring>

#include "stc/simd.h"
#include "stc/tokens.h"

namespace stc {
inline namespace STC_ISA {

template <typename T>
STC_INLINE void add_row(const T* a, const T* b, T* out, int64_t channels) {
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes) store(out + c, load(a + c) + load(b + c));
  const int64_t left = channels - c;
  if (left > 0) store_tail(out + c, load_tail(a + c, left) + load_tail(b + c, left), left);
}

// Rows begin..end of the F·T rows of out. residual may be null.
template <typename T>
void merge_rows(const Tokens& updated, const Tokens& cached, const int32_t* slot,
                const int64_t* reference_index, const Tokens* residual, void* out, int64_t begin,
                int64_t end) {
  const int64_t channels = cached.channels;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t frame = row / cached.tokens, token = row % cached.tokens;
    T* target = static_cast<T*>(out) + row * channels;
    if (slot[row] >= 0) {
      std::memcpy(target, updated.row<T>(frame, slot[row]), channels * sizeof(T));
      continue;
    }
    const T* reused = cached.row<T>(reference_of(reference_index, cached.frames, frame), token);
    if (residual == nullptr) {
      std::memcpy(target, reused, channels * sizeof(T));
    } else {
      add_row(reused, residual->row<T>(frame, token), target, channels);
    }
  }
}

}  // namespace STC_ISA
}  // namespace stc
