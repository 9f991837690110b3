// The kernels of one instruction set as a table of functions, and the choice of the table for this
// processor.
#pragma once

#include <cstdint>

#include "stc/tokens.h"

namespace stc {

// One frame's rows, or a part of them, for the Pruner's two passes.
struct FrameRows {
  const void* data;
  DType dtype;
  int64_t stride;
  int64_t count;
  int64_t channels;
};

struct Kernels {
  const char* name;
  void (*similarity)(const Tokens& current, const Tokens& reference, const int64_t* reference_index,
                     Metric metric, float* out, int64_t begin, int64_t end);
  void (*select)(const float* scores, int64_t tokens, int64_t k, bool largest, int64_t* index,
                 int32_t* slot, uint32_t* keys);
  void (*merge)(const Tokens& updated, const Tokens& cached, const int32_t* slot,
                const int64_t* reference_index, const Tokens* residual, void* out, int64_t begin,
                int64_t end);
  int64_t (*anchor_first_pass)(const FrameRows& rows, Strategy strategy, const float* temporal,
                               float* total, float* squares, float* dots, float* scales);
  void (*anchor_second_pass)(const FrameRows& rows, Strategy strategy, float alpha, float rest,
                             const float* mean, float mean_square, float temporal_square,
                             float* squares, float* dots, float* scores);
  float (*square_sum)(const float* values, int64_t count);
  void (*pick_channels)(const void* row, DType dtype, const int64_t* channels, int64_t count,
                        float* out);
  // out = layer norm of `row`; bias may be null.
  void (*norm)(const void* row, DType dtype, int64_t channels, const float* weight,
               const float* bias, float eps, void* out);
  void (*add)(const void* a, const void* b, DType dtype, int64_t count, void* out);
  void (*to_float32)(const void* values, DType dtype, int64_t count, float* out);
  void (*variance)(const Tokens& tokens, int64_t begin, int64_t end, double* sums, float* variance);
  void (*frame_difference)(const uint8_t* current, const uint8_t* reference, int64_t height,
                           int64_t width, int64_t patch, uint32_t* columns, uint64_t* totals,
                           float* out);
};

// The fastest table that this processor can run; STC_KERNELS_ISA in the environment names another,
// for tests.
const Kernels& kernels();

}  // namespace stc
