// The layer norm's own arguments, for the two ops that end in one.
#pragma once

#include <memory>

#include "arguments.h"

namespace stc {

struct Norm {
  std::unique_ptr<float[]> weight;
  std::unique_ptr<float[]> bias;  // null: none
  float eps;
};

// Checks the arguments against `channels` of tokens of `dtype` and converts them to float32.
Norm check_norm(const char* op, const Tensor& weight, const std::optional<Tensor>& bias, double eps,
                const Tensor& tokens);

}  // namespace stc
