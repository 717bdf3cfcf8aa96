// The text in which a network is handed over to the runner's ops.
#ifndef REUSE_TF_OPS_PROGRAM_H_
#define REUSE_TF_OPS_PROGRAM_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "custom_ops/kernels/network.h"

namespace reuse_tf {

// Reads a program, one line for each part, in the order of the data:
//
//   frames HEIGHT WIDTH CHANNELS uint8|float
//   conv WINDOW FILTERS GROUPS BIAS
//   max_pool WINDOW
//   average_pool WINDOW
//   flatten, or average (global average pooling), once
//   dense UNITS BIAS
//
// where WINDOW is KERNEL_H KERNEL_W STRIDE_H STRIDE_W DILATION_H DILATION_W
// SAME|VALID, and after each of them, functions of a row:
//
//   activation NAME [ARGUMENT...]
//   affine SCALE[,SCALE...] OFFSET[,OFFSET...]
//   batch_norm EPSILON GAMMA BETA
//
// BIAS, GAMMA and BETA are 1 where there is such a weight, else 0.
absl::Status ParseProgram(const std::vector<std::string>& program,
                          NetworkSpec* spec);

}  // namespace reuse_tf

#endif  // REUSE_TF_OPS_PROGRAM_H_
