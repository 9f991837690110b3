// Gathering rows of whole tensors, for the ops that end in it.
#pragma once

#include <tuple>

#include "arguments.h"

namespace stc {

// Checks the arguments, `op` being the name in the message, and returns the index contiguous.
Tensor check_gather(const char* op, const Tensor& tokens, const Tensor& index);

// Copies the k tokens a frame that index names (F·k checked values) to out.
void gather_into(const Tensor& tokens, const int64_t* index, int64_t k, void* out);

// The k tokens a frame of highest (or lowest) score, and their places, both in order of position.
std::tuple<Tensor, Tensor> keep_scored(const Tensor& tokens, const float* scores, int64_t k,
                                       bool largest);

}  // namespace stc
