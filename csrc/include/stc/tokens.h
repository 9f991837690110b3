// How the kernels see a tensor of tokens.
#pragma once

#include <cstdint>

#include "stc/dtype.h"

namespace stc {

enum class Metric { kCosine, kDot, kL1, kL2 };
enum class Strategy { kDualAnchor, kGaussian };

constexpr float kNormFloor = 1e-8f;
constexpr float kInfinity = __builtin_inff();
constexpr float kNaN = __builtin_nanf("");

// [frames, tokens, channels]; strides in elements, channels next to each other.
struct Tokens {
  const void* data;
  DType dtype;
  int64_t frames;
  int64_t tokens;
  int64_t channels;
  int64_t frame_stride;
  int64_t token_stride;

  template <typename T>
  const T* row(int64_t frame, int64_t token) const {
    return static_cast<const T*>(data) + frame * frame_stride + token * token_stride;
  }

  const char* row_bytes(int64_t frame, int64_t token) const {
    return static_cast<const char*>(data) +
           (frame * frame_stride + token * token_stride) * size_of(dtype);
  }
};

// Which reference a frame is held against: the index says, or one serves all, or they pair up.
inline int64_t reference_of(const int64_t* reference_index, int64_t references, int64_t frame) {
  if (reference_index != nullptr) return reference_index[frame];
  return references == 1 ? 0 : frame;
}

}  // namespace stc
