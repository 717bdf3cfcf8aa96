// The text in which a network is handed over to the runner's ops.
#ifndef REUSE_TF_OPS_NODE_LIST_H_
#define REUSE_TF_OPS_NODE_LIST_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "custom_ops/kernels/graph/graph.h"

namespace reuse_tf {

// Reads a graph, one line for each node, behind those that it looks at, and
// numbered from 0:
//
//   frames HEIGHT WIDTH CHANNELS uint8|float          the first, once
//   weights HEIGHT WIDTH CHANNELS
//   conv INPUT WINDOW FILTERS GROUPS BIAS TRANSPOSED
//   pool INPUT max|mean|sum WINDOW
//   join INPUT,INPUT[,...] add|subtract|multiply|average|maximum|minimum|
//        concatenate|prelu
//   dense INPUT UNITS BIAS
//   global INPUT mean|max
//   reshape INPUT HEIGHT WIDTH CHANNELS
//   permute INPUT AXIS,AXIS,AXIS      of the input, 0: height ... 2: channels
//   group_norm INPUT GROUPS EPSILON
//
// where WINDOW is KERNEL_H KERNEL_W STRIDE_H STRIDE_W DILATION_H DILATION_W
// UP_H UP_W SAME|VALID|TOP,BOTTOM,LEFT,RIGHT. After each of them but weights,
// functions of a row:
//
//   activation NAME [ARGUMENT...]
//   affine SCALE[,SCALE...] OFFSET[,OFFSET...]
//   batch_norm EPSILON GAMMA BETA
//   normalization EPSILON VALUES                      VALUES: 1 or the channels
//   layer_norm EPSILON GAMMA BETA
//   scale GAMMA BETA
//   prelu
//
// and, where not all that changes is handed on (Node::threshold):
//
//   threshold VALUE                                   above 0
//
// At the end, for each output:
//
//   output NODE
//
// BIAS, GAMMA and BETA are 1 where there is such a weight, else 0. graph.h says
// what nodes and functions are, and in which order their weights come. Only
// joins look at weights.
absl::Status ParseNodeList(const std::vector<std::string>& lines, Graph* graph);

}  // namespace reuse_tf

#endif  // REUSE_TF_OPS_NODE_LIST_H_
