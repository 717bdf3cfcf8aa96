// What the ops that find the structure of videos put out.
#ifndef REUSE_TF_OPS_STRUCTURE_OUTPUTS_H_
#define REUSE_TF_OPS_STRUCTURE_OUTPUTS_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "custom_ops/kernels/episode.h"
#include "custom_ops/kernels/structure.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace reuse_tf {

// The shapes of pixels, pairs, contents, runs and patches.
inline void SetStructureShapes(
    tensorflow::shape_inference::InferenceContext* c,
    tensorflow::shape_inference::DimensionHandle channels) {
  c->set_output(0, c->Matrix(c->UnknownDim(), channels));
  c->set_output(1, c->Matrix(c->UnknownDim(), 2));
  c->set_output(2, c->Matrix(c->UnknownDim(), Tiles::kPositions));
  c->set_output(3, c->Matrix(c->UnknownDim(), 3));
  for (int i = 4; i < c->num_outputs(); ++i) {
    c->set_output(i, c->UnknownShapeOfRank(2));
  }
}

inline void OutputIds(tensorflow::OpKernelContext* context, int index,
                      int64_t rows, int64_t width, const void* data) {
  tensorflow::Tensor* out = nullptr;
  OP_REQUIRES_OK(context, context->allocate_output(index, {rows, width}, &out));
  if (rows > 0) {
    std::memcpy(out->flat<int32_t>().data(), data,
                rows * width * sizeof(int32_t));
  }
}

// Of `count` distinct pixels: those of a table, or, if it is null, all values
// of one byte.
inline void OutputPixels(tensorflow::OpKernelContext* context,
                         const FrameShape& frame, const InternTable* table,
                         int64_t count) {
  const int64_t channels = frame.channels;
  tensorflow::Tensor* out = nullptr;
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

// What was recorded of a structure; nothing if there are no frames.
inline void OutputStructure(tensorflow::OpKernelContext* context,
                            const FrameShape& frame, const Structure& structure,
                            EpisodeRecorder* recorder) {
  std::vector<Pair> pairs;
  std::vector<int32_t> contents;
  std::vector<Run> runs;
  recorder->Finish(&pairs, &contents, &runs);
  const auto& maps = structure.maps();
  const InternTable* table = maps[0].table.get();
  OutputPixels(context, frame, table,
               runs.empty()       ? 0
               : table != nullptr ? table->size()
                                  : 256);
  OutputIds(context, 1, pairs.size(), 2, pairs.data());
  OutputIds(context, 2, contents.size() / Tiles::kPositions, Tiles::kPositions,
            contents.data());
  OutputIds(context, 3, runs.size(), 3, runs.data());
  for (size_t i = 1; i < maps.size(); ++i) {
    const InternTable& patches = *maps[i].table;
    OutputIds(context, 3 + static_cast<int>(i), patches.size(), patches.words(),
              patches.key(0));
  }
}

}  // namespace reuse_tf

#endif  // REUSE_TF_OPS_STRUCTURE_OUTPUTS_H_
