// A network as a list of nodes.
#ifndef REUSE_TF_KERNELS_GRAPH_GRAPH_H_
#define REUSE_TF_KERNELS_GRAPH_GRAPH_H_

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "custom_ops/kernels/arithmetic/join.h"
#include "custom_ops/kernels/arithmetic/pool.h"
#include "custom_ops/kernels/arithmetic/row_ops.h"
#include "custom_ops/kernels/base/sizes.h"
#include "custom_ops/kernels/patches/window.h"

namespace reuse_tf {

// A function of one row. All but the given ones follow from weights, in the
// order in which they are mentioned here.
struct RowFunction {
  enum Kind {
    kGiven,          // `op`, as it is
    kBatchNorm,      // gamma and beta, if it has them, mean and variance
    kNormalization,  // mean and variance, of one value or one a channel
    kLayerNorm,      // gamma and beta, if it has them
    kScale,          // the same
    kPRelu,          // alpha
  };
  Kind kind = kGiven;
  RowOp op;
  bool has_gamma = false, has_beta = false;
  float epsilon = 0;
  int64_t values = 0;  // of a normalization's mean: 1 or the channels
};

// A node makes a map of the maps of nodes before it. A vector is a map of 1 x
// 1. Weights come node by node: the kernel, the bias, and those of functions.
struct Node {
  enum Kind {
    kFrames,   // what comes in
    kWeights,  // a map that is a variable, the same in every frame
    // A window of one map.
    kConv,
    kPool,
    // Positions of several maps, of the same size or of 1 x 1, joined.
    kJoin,
    // Of a whole map at once.
    kDense,      // a product with all of it, 1 x 1
    kGlobal,     // the maximum or mean of all positions, 1 x 1
    kReshape,    // the same values in a map of another size
    kPermute,    // the same values, of which each axis is another one
    kGroupNorm,  // groups of channels with a mean of 0 and a variance of 1
  };
  Kind kind = kFrames;
  std::vector<int32_t> inputs;
  int64_t height = 0, width = 0, channels = 0;
  Window window;
  Pooling pooling = Pooling::kMax;
  JoinKind join = JoinKind::kAdd;
  int64_t groups = 1;
  bool use_bias = false;
  // The kernel is [taps, filters, channels] and its taps are in reverse order.
  bool transposed = false;
  float epsilon = 0;
  // Of a permutation: which of height, width and channels of the input each of
  // them is.
  std::array<int64_t, 3> order = {0, 1, 2};
  std::vector<RowFunction> functions;
  // When stepping, a row none of whose values moved by more than this since it
  // was last handed on is not handed on to the nodes behind it. Of the frames,
  // the values are those that come in.
  float threshold = 0;
  // Has a value for each frame that no other frame shares: it, or all before
  // it back to such a one, looks at a whole map.
  bool per_frame = false;

  int64_t pixels() const { return height * width; }
  bool windowed() const { return kind == kConv || kind == kPool; }
  bool whole() const { return kind >= kDense; }
  // Its rows are ids of rows before them.
  bool has_patches() const {
    return !per_frame && (windowed() || kind == kJoin);
  }
  int64_t taps() const {
    return kind == kJoin ? static_cast<int64_t>(inputs.size()) : window.taps();
  }
};

struct Graph {
  FrameShape frame;
  std::vector<Node> nodes;  // the first one is that of the frames
  std::vector<int32_t> outputs;

  // Adds a node, of which all is set but `per_frame`.
  void Add(Node node) {
    node.per_frame = node.whole();
    if (!node.whole() && !node.inputs.empty() && node.pixels() == 1) {
      bool all = true, any = false;
      for (const int32_t i : node.inputs) {
        const Node& input = nodes[i];
        all &= input.pixels() == 1 &&
               (input.per_frame || input.kind == Node::kWeights);
        any |= input.per_frame;
      }
      node.per_frame = all && any;
    }
    nodes.push_back(std::move(node));
  }

  const Node& input(const Node& node, int64_t i = 0) const {
    return nodes[node.inputs[i]];
  }
  // The values of the kernel of a convolution or a dense layer.
  int64_t KernelSize(const Node& node) const {
    const Node& from = input(node);
    const int64_t depth =
        node.kind == Node::kDense
            ? from.pixels() * from.channels
            : node.window.taps() * from.channels / node.groups;
    return depth * node.channels;
  }

  bool HasThresholds() const {
    return std::any_of(nodes.begin(), nodes.end(),
                       [](const Node& node) { return node.threshold > 0; });
  }

  // The number of values of each weight.
  std::vector<int64_t> WeightSizes() const {
    std::vector<int64_t> sizes;
    for (const Node& node : nodes) {
      const int64_t channels = node.channels;
      if (node.kind == Node::kWeights) {
        sizes.push_back(node.pixels() * channels);
      }
      if (node.kind == Node::kConv || node.kind == Node::kDense) {
        sizes.push_back(KernelSize(node));
        if (node.use_bias) sizes.push_back(channels);
      }
      for (const RowFunction& f : node.functions) {
        sizes.insert(sizes.end(), f.has_gamma + f.has_beta, channels);
        if (f.kind == RowFunction::kBatchNorm) {
          sizes.insert(sizes.end(), 2, channels);
        } else if (f.kind == RowFunction::kNormalization) {
          sizes.insert(sizes.end(), 2, f.values);
        } else if (f.kind == RowFunction::kPRelu) {
          sizes.push_back(channels);
        }
      }
    }
    return sizes;
  }

  // The maps whose rows are looked at all over: by a node of a whole map, or as
  // an output.
  std::vector<int32_t> Shown() const {
    std::vector<int32_t> shown;
    for (const Node& node : nodes) {
      if (node.whole()) shown.push_back(node.inputs[0]);
    }
    shown.insert(shown.end(), outputs.begin(), outputs.end());
    std::sort(shown.begin(), shown.end());
    shown.erase(std::unique(shown.begin(), shown.end()), shown.end());
    const auto per_frame = [&](int32_t i) { return nodes[i].per_frame; };
    shown.erase(std::remove_if(shown.begin(), shown.end(), per_frame),
                shown.end());
    return shown;
  }

  // The nodes of a value a frame that others than these look at.
  std::vector<int32_t> States() const {
    std::vector<int32_t> states;
    for (const Node& node : nodes) {
      if (!node.has_patches()) continue;
      for (const int32_t i : node.inputs) {
        if (nodes[i].per_frame) states.push_back(i);
      }
    }
    std::sort(states.begin(), states.end());
    states.erase(std::unique(states.begin(), states.end()), states.end());
    return states;
  }
};

}  // namespace reuse_tf

#endif  // REUSE_TF_KERNELS_GRAPH_GRAPH_H_
