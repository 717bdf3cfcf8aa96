// Random graphs and videos, for tests.
#ifndef REUSE_TF_KERNELS_GRAPH_RANDOM_GRAPH_H_
#define REUSE_TF_KERNELS_GRAPH_RANDOM_GRAPH_H_

#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "custom_ops/kernels/graph/graph.h"
#include "custom_ops/kernels/testing/testing.h"

namespace reuse_tf {

inline Window RandomWindow(Random* random, int64_t height, int64_t width) {
  Window w;
  w.height = height;
  w.width = width;
  w.kernel_height = random->Int(1, 3);
  w.kernel_width = random->Int(1, 3);
  w.stride_height = random->Int(1, 2);
  w.stride_width = random->Int(1, 2);
  w.dilation_height = random->Int(1, 2);
  w.dilation_width = random->Int(1, 2);
  if (random->Chance(20) && height < 10 && width < 10) {
    w.up_height = random->Int(1, 3);
    w.up_width = random->Int(1, 3);
  }
  if (random->Chance(25)) {
    Pad(random->Int(-2, 2), random->Int(-1, 2), random->Int(-2, 2),
        random->Int(-1, 3), &w);
  } else {
    Pad(random->Chance(50), &w);
  }
  if (w.positions() == 0) Pad(true, &w);
  return w;
}

// Frames that follow each other: of few values, so that patches come again.
class Video {
 public:
  Video(const FrameShape& shape, int64_t streams, uint32_t seed)
      : shape_(shape), streams_(streams), random_(seed) {
    values_.resize(streams * shape.pixels() * shape.channels);
    Redraw(100);
  }
  int64_t streams() const { return streams_; }
  const uint8_t* data() {
    if (!shape_.bytes) return reinterpret_cast<const uint8_t*>(values_.data());
    bytes_.assign(values_.begin(), values_.end());
    return bytes_.data();
  }
  // [streams, pixels, channels].
  const std::vector<float>& values() const { return values_; }

  void Next() {
    if (random_.Chance(30)) before_ = values_;
    switch (random_.Int(0, 7)) {
      case 0:
        if (before_.size() == values_.size()) values_.swap(before_);
        return;
      case 1:
        return Redraw(100);
      case 2:
        return Resize(random_.Pick<int64_t>({1, 2, 6}));
      case 3:  // what another stream shows
        std::copy_n(values_.end() - values_.size() / streams_,
                    values_.size() / streams_, values_.begin());
        return;
      case 4:
        if (!shape_.bytes) {
          values_[random_.Int(0, values_.size() - 1)] =
              random_.Pick<float>({NAN, INFINITY, -0.f});
        }
        return;
      default:
        return Redraw(random_.Pick<int64_t>({1, 5, 20}));
    }
  }

 private:
  void Redraw(int64_t percent) {
    for (float& value : values_) {
      if (random_.Chance(percent)) value = random_.Int(0, 2);
    }
  }
  void Resize(int64_t streams) {
    values_.resize(values_.size() / streams_ * streams);
    streams_ = streams;
  }

  FrameShape shape_;
  int64_t streams_;
  Random random_;
  std::vector<float> values_, before_;
  std::vector<uint8_t> bytes_;
};

inline FrameShape RandomFrame(Random* random) {
  FrameShape frame;
  frame.height = random->Int(1, 8);
  frame.width = random->Pick<int64_t>({1, 5, 8, 70});
  frame.channels = random->Int(1, 4);
  frame.bytes = random->Chance(50);
  return frame;
}

inline Activation Named(const char* name) {
  Activation activation;
  CHECK(Activation::Make(name, {}, &activation));
  return activation;
}

inline RowFunction RandomFunction(Random* random, int64_t channels) {
  RowFunction f;
  f.epsilon = 0.01f;
  switch (random->Int(0, 7)) {
    case 0:
      f.op.activation = Named("relu");
      break;
    case 1:
      f.op.activation = Named("tanh");
      break;
    case 2:
      f.op.kind = RowOp::kAffine;
      f.op.scale = {0.5f};
      f.op.offset = std::vector<float>(channels, 0.25f);
      break;
    case 3:
      f.kind = RowFunction::kPRelu;
      break;
    case 4:
      f.kind = RowFunction::kNormalization;
      f.values = random->Pick<int64_t>({1, channels});
      break;
    default:
      f.kind = random->Pick({RowFunction::kBatchNorm, RowFunction::kLayerNorm,
                             RowFunction::kScale});
      f.has_gamma = random->Chance(50);
      f.has_beta = random->Chance(50);
  }
  return f;
}

enum class Kinds {
  kLocal,  // windows and joins
  kAll,
};

// Makes random nodes, each of those before it.
class RandomGraph {
 public:
  RandomGraph(Random* random, Kinds kinds) : random_(*random), kinds_(kinds) {
    graph_.frame = RandomFrame(random);
    Node frames;
    frames.height = graph_.frame.height;
    frames.width = graph_.frame.width;
    frames.channels = graph_.frame.channels;
    Add(frames);
    for (int64_t k = random_.Int(0, 5); k > 0; --k) AddAny();
  }
  // With one sum over the last map, or with outputs of all kinds.
  Graph WithSum() {
    AddDense(graph_.nodes.size() - 1);
    graph_.outputs = {static_cast<int32_t>(graph_.nodes.size()) - 1};
    return graph_;
  }
  Graph WithOutputs() {
    if (random_.Chance(60)) AddDense(PickMap());
    graph_.outputs = {PickMap()};
    while (random_.Chance(30)) graph_.outputs.push_back(PickMap());
    if (random_.Chance(60)) {
      graph_.outputs.push_back(graph_.nodes.size() - 1);
    }
    return graph_;
  }

 private:
  void Add(Node node) {
    if (node.kind != Node::kWeights) {
      while (random_.Chance(25)) {
        node.functions.push_back(RandomFunction(&random_, node.channels));
      }
    }
    graph_.Add(node);
  }
  int32_t PickMap() {
    for (;;) {
      // Mostly the last one.
      const int32_t last = static_cast<int32_t>(graph_.nodes.size()) - 1;
      const int32_t i = random_.Chance(50)
                            ? last
                            : static_cast<int32_t>(random_.Int(0, last));
      if (graph_.nodes[i].kind != Node::kWeights) return i;
    }
  }
  void AddDense(int32_t input) {
    Node node;
    node.kind = Node::kDense;
    node.inputs = {input};
    node.height = node.width = 1;
    node.channels = random_.Int(1, 20);
    node.use_bias = random_.Chance(50);
    Add(node);
  }

  void AddAny() {
    const int64_t kind = random_.Int(0, kinds_ == Kinds::kAll ? 9 : 6);
    Node node;
    node.inputs = {PickMap()};
    const Node& from = graph_.nodes[node.inputs[0]];
    node.channels = from.channels;
    if (kind < 3) {
      node.kind = Node::kConv;
      node.window = RandomWindow(&random_, from.height, from.width);
      node.groups = random_.Chance(30) ? from.channels : 1;
      node.channels = node.groups * random_.Int(1, node.groups > 1 ? 2 : 9);
      node.use_bias = random_.Chance(50);
      node.transposed = node.groups == 1 && random_.Chance(30);
    } else if (kind < 5) {
      node.kind = Node::kPool;
      node.window = RandomWindow(&random_, from.height, from.width);
      node.pooling =
          random_.Pick({Pooling::kMax, Pooling::kMean, Pooling::kSum});
    } else if (kind < 7) {
      AddJoin(node.inputs[0]);
      return;
    } else if (kind == 7) {
      AddDense(node.inputs[0]);
      return;
    } else if (kind == 8) {
      node.kind = Node::kGlobal;
      node.pooling = random_.Pick({Pooling::kMax, Pooling::kMean});
      node.height = node.width = 1;
    } else if (random_.Chance(60)) {
      // The one and the other make the same shape of different orders.
      node.kind = random_.Pick({Node::kReshape, Node::kPermute});
      node.order = {1, 2, 0};
      node.height = from.width;
      node.width = from.channels;
      node.channels = from.height;
    } else {
      node.kind = Node::kGroupNorm;
      node.groups = random_.Chance(50) ? from.channels : 1;
      node.epsilon = 0.1f;
      node.height = from.height;
      node.width = from.width;
    }
    if (node.windowed()) {
      node.height = node.window.out_height;
      node.width = node.window.out_width;
    }
    Add(node);
  }

  // With another map of the same size, with one of 1 x 1, with weights, or with
  // itself.
  void AddJoin(int32_t input) {
    const auto from = [&](int32_t i) -> const Node& { return graph_.nodes[i]; };
    std::vector<int32_t> others = {input};
    for (int32_t i = 0; i < static_cast<int32_t>(graph_.nodes.size()); ++i) {
      if (from(i).height == from(input).height &&
          from(i).width == from(input).width) {
        others.push_back(i);
      }
    }
    if (kinds_ == Kinds::kAll && random_.Chance(30)) {
      Node weights;
      weights.kind = Node::kWeights;
      weights.height = from(input).height;
      weights.width = from(input).width;
      weights.channels = from(input).channels;
      others.assign(1, graph_.nodes.size());
      graph_.Add(weights);
    }
    Node node;
    node.kind = Node::kJoin;
    node.join = random_.Pick({JoinKind::kAdd, JoinKind::kSubtract,
                              JoinKind::kMultiply, JoinKind::kAverage,
                              JoinKind::kMaximum, JoinKind::kMinimum,
                              JoinKind::kConcatenate, JoinKind::kPRelu});
    const bool two =
        node.join == JoinKind::kSubtract || node.join == JoinKind::kPRelu;
    const bool concatenate = node.join == JoinKind::kConcatenate;
    for (int32_t i = 0; !concatenate && i < input; ++i) {
      if (from(i).pixels() == 1) others.push_back(i);
    }
    node.inputs = {input};
    node.height = from(input).height;
    node.width = from(input).width;
    node.channels = from(input).channels;
    for (int64_t k = two ? 1 : random_.Int(1, 3); k > 0; --k) {
      const int32_t other = others[random_.Int(0, others.size() - 1)];
      const int64_t channels = from(other).channels;
      const bool fits =
          concatenate || channels == node.channels || channels == 1;
      node.inputs.push_back(fits ? other : input);
      if (concatenate) node.channels += channels;
    }
    if (!concatenate && random_.Chance(50)) {
      std::swap(node.inputs[0], node.inputs.back());
    }
    Add(node);
  }

  Random& random_;
  const Kinds kinds_;
  Graph graph_;
};

// What is under each position of a node: [streams * positions, taps], pixels of
// inputs numbered through the streams.
inline std::vector<int32_t> AllPatches(const Graph& graph, const Node& node,
                                       int64_t streams) {
  if (node.windowed()) return reference::AllPatches(node.window, streams);
  std::vector<int32_t> patches;
  for (int64_t n = 0; n < streams; ++n) {
    for (int64_t p = 0; p < node.pixels(); ++p) {
      for (const int32_t i : node.inputs) {
        const Node& from = graph.nodes[i];
        const int64_t stream = from.kind == Node::kWeights ? 0 : n;
        patches.push_back(stream * from.pixels() +
                          (from.pixels() == 1 ? 0 : p));
      }
    }
  }
  return patches;
}

inline std::vector<int64_t> ForEachMap(const Graph& graph, int64_t value) {
  return std::vector<int64_t>(graph.nodes.size(), value);
}

inline std::vector<int64_t> ForEachShown(const Graph& graph, int64_t value) {
  return std::vector<int64_t>(graph.Shown().size(), value);
}

}  // namespace reuse_tf

#endif  // REUSE_TF_KERNELS_GRAPH_RANDOM_GRAPH_H_
