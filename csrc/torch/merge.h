// Merging whole tensors, for the two ops that do it.
#pragma once

#include "arguments.h"

namespace stc {

// The checked arguments as the kernels want them, and the tensors that keep their memory alive.
struct Merge {
  Tensor updated, cached, slot;
  std::optional<Tensor> reference_index, residual;
  Tokens updated_view, cached_view, residual_view;
  int64_t frames, tokens, channels;

  // Rows begin..end of the F·T rows of out.
  void run(void* out, int64_t begin, int64_t end) const;
};

// Checks the arguments; `op` is the name in the message.
Merge check_merge(const char* op, const Tensor& updated, const Tensor& cached, const Tensor& slot,
                  const std::optional<Tensor>& reference_index,
                  const std::optional<Tensor>& residual);

}  // namespace stc
