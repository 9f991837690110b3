// The Pruner's scores of whole tensors, for the two ops that need them.
#pragma once

#include "arguments.h"

namespace stc {

struct ScoreArguments {
  Tensor tokens;
  std::optional<Tensor> temporal_anchor;
  Strategy strategy;
  double alpha;
  std::optional<Tensor> channels;
};

// Checks the arguments; `op` is the name in the message.
ScoreArguments check_scores(const char* op, const Tensor& tokens,
                            const std::optional<Tensor>& temporal_anchor,
                            const std::string& strategy, double alpha,
                            const std::optional<Tensor>& channels);

// Writes the novelty of every token to out, F·T values.
void scores_into(const ScoreArguments& arguments, float* out);

}  // namespace stc
