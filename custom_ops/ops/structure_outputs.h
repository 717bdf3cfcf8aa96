// What the ops that find the structure of videos put out.
#ifndef REUSE_TF_OPS_STRUCTURE_OUTPUTS_H_
#define REUSE_TF_OPS_STRUCTURE_OUTPUTS_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "custom_ops/kernels/graph/episode.h"
#include "custom_ops/kernels/graph/structure.h"
#include "custom_ops/ops/common.h"

namespace reuse_tf {

// The outputs of a structure: pixels and order, then, of each node that has
// them, patches, of each shown map pairs, contents and runs, and of each node
// of a value a frame that others look at, states.
struct StructureCounts {
  int64_t patches = 0, shown = 0, states = 0;

  StructureCounts() = default;
  explicit StructureCounts(const Graph& graph)
      : shown(graph.Shown().size()), states(graph.States().size()) {
    for (const Node& node : graph.nodes) patches += node.has_patches();
  }

  template <typename Source>  // OpKernelConstruction or InferenceContext
  absl::Status Read(Source* source) {
    TF_RETURN_IF_ERROR(source->GetAttr("num_patches", &patches));
    TF_RETURN_IF_ERROR(source->GetAttr("num_shown", &shown));
    return source->GetAttr("num_states", &states);
  }
  absl::Status CheckAre(const StructureCounts& of_graph) const {
    if (patches == of_graph.patches && shown == of_graph.shown &&
        states == of_graph.states) {
      return absl::OkStatus();
    }
    return absl::InvalidArgumentError(absl::StrCat(
        "num_patches, num_shown and num_states must be those of the nodes, ",
        of_graph.patches, ", ", of_graph.shown, " and ", of_graph.states,
        ", got ", patches, ", ", shown, " and ", states));
  }
};

inline absl::Status SetStructureShapes(InferenceContext* c,
                                       DimensionHandle channels) {
  StructureCounts counts;
  TF_RETURN_IF_ERROR(counts.Read(c));
  c->set_output(0, c->Matrix(c->UnknownDim(), channels));
  c->set_output(1, c->UnknownShapeOfRank(1));
  int i = 2;
  const auto add = [&](int64_t count, const auto& shape) {
    for (int64_t k = 0; k < count; ++k) c->set_output(i++, shape());
  };
  const auto matrix = [&](int64_t columns) {
    return c->Matrix(c->UnknownDim(), columns);
  };
  add(counts.patches, [&] { return c->UnknownShapeOfRank(2); });
  add(counts.shown, [&] { return matrix(2); });
  add(counts.shown, [&] { return matrix(Tiles::kPositions); });
  add(counts.shown, [&] { return matrix(4); });
  add(counts.states, [&] { return c->UnknownShapeOfRank(1); });
  return absl::OkStatus();
}

inline void OutputIds(OpKernelContext* context, int index,
                      const TensorShape& shape, const void* data) {
  Tensor* out = nullptr;
  OP_REQUIRES_OK(context, context->allocate_output(index, shape, &out));
  if (out->NumElements() > 0) {
    std::memcpy(out->data(), data, out->NumElements() * sizeof(int32_t));
  }
}

// What a shown map shows; the first of its three tensors is output `index`, the
// others are `shown` apart.
inline void OutputShown(OpKernelContext* context, int index, int shown,
                        const std::vector<Pair>& pairs,
                        const std::vector<int32_t>& contents,
                        const std::vector<Run>& runs) {
  const auto size = [](const auto& v) {
    return static_cast<int64_t>(v.size());
  };
  OutputIds(context, index, {size(pairs), 2}, pairs.data());
  OutputIds(context, index + shown,
            {size(contents) / Tiles::kPositions, Tiles::kPositions},
            contents.data());
  OutputIds(context, index + 2 * shown, {size(runs), 4}, runs.data());
}

// Of `count` distinct pixels: those of a table, or, if it is null, all values
// of one byte.
inline void OutputPixels(OpKernelContext* context, const FrameShape& frame,
                         const InternTable* table, int64_t count) {
  const int64_t channels = frame.channels;
  Tensor* out = nullptr;
  OP_REQUIRES_OK(context, context->allocate_output(0, {count, channels}, &out));
  float* to = out->flat<float>().data();
  for (int64_t i = 0; i < count; ++i, to += channels) {
    if (table == nullptr) {
      *to = i;
    } else if (frame.bytes) {
      const auto* from = reinterpret_cast<const uint8_t*>(table->key(i));
      std::copy(from, from + channels, to);
    } else {
      std::memcpy(to, table->key(i), channels * sizeof(float));
    }
  }
}

// What was recorded of a structure, a recorder for each shown map: nothing if
// there are none. `states` has, by node, a number for each frame.
inline void OutputStructure(OpKernelContext* context,
                            const Structure& structure,
                            std::vector<EpisodeRecorder>* recorders,
                            const std::vector<std::vector<int32_t>>& states) {
  const Graph& graph = structure.graph();
  const StructureCounts counts(graph);
  const auto& maps = structure.maps();
  const auto size = [](const auto& v) {
    return static_cast<int64_t>(v.size());
  };
  std::vector<int32_t> contents, order;
  const int first = 2 + static_cast<int>(counts.patches);
  const int shown = static_cast<int>(counts.shown);
  for (int k = 0; k < shown; ++k) {
    std::vector<Pair> pairs;
    std::vector<Run> runs;
    contents.clear();
    if (!recorders->empty()) {
      (*recorders)[k].Finish(&pairs, &contents, &runs, &order);
    }
    OutputShown(context, first + k, shown, pairs, contents, runs);
  }
  const bool any = !order.empty();
  const InternTable* table = maps[0].table.get();
  OutputPixels(context, graph.frame, table,
               !any               ? 0
               : table == nullptr ? kByteValues
                                  : table->size());
  OutputIds(context, 1, {size(order)}, order.data());
  int patches = 2;
  for (size_t i = 0; i < maps.size(); ++i) {
    if (!graph.nodes[i].has_patches()) continue;
    const InternTable* rows = any ? maps[i].table.get() : nullptr;
    OutputIds(context, patches++,
              {any ? rows->size() : 0, graph.nodes[i].taps()},
              any ? rows->key(0) : nullptr);
  }
  for (int64_t k = 0; k < counts.states; ++k) {
    OutputIds(context, first + 3 * shown + static_cast<int>(k),
              {any ? size(states[k]) : 0}, any ? states[k].data() : nullptr);
  }
}

}  // namespace reuse_tf

#endif  // REUSE_TF_OPS_STRUCTURE_OUTPUTS_H_
