// Similarity of whole tensors, for the two ops that need it.
#pragma once

#include "arguments.h"

namespace stc {

// Checks the arguments; `op` is the name in the message.
Metric check_similarity(const char* op, const Tensor& current, const Tensor& reference,
                        const std::optional<Tensor>& reference_index, const std::string& metric);

// Writes the similarity of every token to out, F·T values. The arguments were checked.
void similarity_into(const Tensor& current, const Tensor& reference,
                     const std::optional<Tensor>& reference_index, Metric metric, float* out);

}  // namespace stc
