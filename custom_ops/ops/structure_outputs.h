// What the ops that find the structure of videos put out.
#ifndef REUSE_TF_OPS_STRUCTURE_OUTPUTS_H_
#define REUSE_TF_OPS_STRUCTURE_OUTPUTS_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "custom_ops/kernels/episode.h"
#include "custom_ops/kernels/structure.h"
#include "custom_ops/ops/common.h"

namespace reuse_tf {

// The shapes of pixels, pairs, contents, runs, order and patches.
inline void SetStructureShapes(InferenceContext* c, DimensionHandle channels) {
  c->set_output(0, c->Matrix(c->UnknownDim(), channels));
  c->set_output(1, c->Matrix(c->UnknownDim(), 2));
  c->set_output(2, c->Matrix(c->UnknownDim(), Tiles::kPositions));
  c->set_output(3, c->Matrix(c->UnknownDim(), 4));
  c->set_output(4, c->UnknownShapeOfRank(1));
  for (int i = 5; i < c->num_outputs(); ++i) {
    c->set_output(i, c->UnknownShapeOfRank(2));
  }
}

inline void OutputIds(OpKernelContext* context, int index,
                      const TensorShape& shape, const void* data) {
  Tensor* out = nullptr;
  OP_REQUIRES_OK(context, context->allocate_output(index, shape, &out));
  if (out->NumElements() > 0) {
    std::memcpy(out->data(), data, out->NumElements() * sizeof(int32_t));
  }
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

// What was recorded of a structure: nothing if there are no frames, or if
// `recorder` is null.
inline void OutputStructure(OpKernelContext* context, const FrameShape& frame,
                            const Structure& structure,
                            EpisodeRecorder* recorder) {
  std::vector<Pair> pairs;
  std::vector<int32_t> contents, order;
  std::vector<Run> runs;
  if (recorder != nullptr) recorder->Finish(&pairs, &contents, &runs, &order);
  const auto size = [](const auto& v) {
    return static_cast<int64_t>(v.size());
  };
  const bool any = !order.empty();
  const auto& maps = structure.maps();
  const std::vector<Window>& windows = structure.windows();
  const InternTable* table = maps[0].table.get();
  OutputPixels(context, frame, table,
               !any               ? 0
               : table == nullptr ? 256
                                  : table->size());
  OutputIds(context, 1, {size(pairs), 2}, pairs.data());
  OutputIds(context, 2, {size(contents) / Tiles::kPositions, Tiles::kPositions},
            contents.data());
  OutputIds(context, 3, {size(runs), 4}, runs.data());
  OutputIds(context, 4, {size(order)}, order.data());
  for (size_t i = 0; i < windows.size(); ++i) {
    const InternTable* patches = any ? maps[i + 1].table.get() : nullptr;
    OutputIds(context, 5 + static_cast<int>(i),
              {any ? patches->size() : 0, windows[i].taps()},
              any ? patches->key(0) : nullptr);
  }
}

}  // namespace reuse_tf

#endif  // REUSE_TF_OPS_STRUCTURE_OUTPUTS_H_
