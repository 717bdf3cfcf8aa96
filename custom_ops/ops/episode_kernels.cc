// What the ops of episode_ops.cc do.

#include <algorithm>

#include "custom_ops/kernels/arithmetic/pool.h"
#include "custom_ops/kernels/arithmetic/rows.h"
#include "custom_ops/kernels/base/lazy_buffer.h"
#include "custom_ops/kernels/graph/episode.h"
#include "custom_ops/kernels/graph/gradients.h"
#include "custom_ops/kernels/graph/take.h"
#include "custom_ops/ops/common.h"
#include "custom_ops/ops/node_list.h"
#include "custom_ops/ops/structure_outputs.h"

namespace reuse_tf {
namespace {

absl::Status Mismatch(const char* name, const char* expected,
                      const Tensor& tensor) {
  return absl::InvalidArgumentError(absl::StrCat(
      name, " must be ", expected, ", got ", tensor.shape().DebugString()));
}

// The network of an op, whose outputs are those of its structure.
absl::Status ReadNodes(OpKernelConstruction* context, Graph* graph) {
  std::vector<std::string> nodes;
  StructureCounts counts;
  TF_RETURN_IF_ERROR(context->GetAttr("nodes", &nodes));
  TF_RETURN_IF_ERROR(ParseNodeList(nodes, graph));
  TF_RETURN_IF_ERROR(counts.Read(context));
  return counts.CheckAre(StructureCounts(*graph));
}

// Checks the shapes of what a shown map shows.
absl::Status CheckShown(const Tensor& pairs, const Tensor& contents,
                        const Tensor& runs) {
  if (pairs.dims() != 2 || pairs.dim_size(1) != 2) {
    return Mismatch("pairs", "[D, 2]", pairs);
  }
  if (contents.dims() != 2 || contents.dim_size(1) != Tiles::kPositions) {
    return Mismatch("contents", "[E, 16]", contents);
  }
  if (runs.dims() != 2 || runs.dim_size(1) != 4) {
    return Mismatch("runs", "[K, 4]", runs);
  }
  return absl::OkStatus();
}

template <typename T>
class VideoStructureOp : public GuardedOp {
 public:
  explicit VideoStructureOp(OpKernelConstruction* context)
      : GuardedOp(context) {
    OP_REQUIRES_OK(context, ReadNodes(context, &graph_));
  }

  void DoCompute(OpKernelContext* context) override {
    const Tensor& frames = context->input(0);
    const FrameShape& shape = graph_.frame;
    OP_REQUIRES_OK(context, CheckFrames(frames, shape, "T"));
    const int64_t count = frames.dim_size(0);
    OP_REQUIRES_OK(context, CheckCountable("the number of frames", {count}));
    // No map has more rows than positions in all frames.
    std::vector<int64_t> max_rows, max_tiles;
    const auto most = [&](int64_t of_frame) {
      return std::min<int64_t>(of_frame * count, INT32_MAX);
    };
    for (const Node& node : graph_.nodes) {
      max_rows.push_back(most(node.pixels()));
      if (!node.per_frame) continue;
      OP_REQUIRES_OK(context, CheckCountable("frames times a map's positions",
                                             {count, node.pixels()}));
    }
    const std::vector<int32_t> shown = graph_.Shown();
    // At most as many tiles as frames hold: what does not fit is not numbered.
    for (const int32_t map : shown) {
      max_tiles.push_back(most(Tiles(graph_, map).count()));
    }
    Structure structure(graph_, {max_rows}, max_tiles);
    std::vector<EpisodeRecorder> recorders;
    for (size_t k = 0; k < shown.size(); ++k) {
      recorders.emplace_back(structure, k, max_tiles[k], INT32_MAX);
    }
    const std::vector<int32_t> nodes = graph_.States();
    std::vector<std::vector<int32_t>> states(nodes.size());
    const auto* bytes = static_cast<const uint8_t*>(frames.data());
    const int64_t size = shape.pixels() * shape.pixel_size();
    const ParallelFor parallel = OpThreads(context);
    for (int64_t t = 0; t < count; ++t) {
      bool good = structure.Step(bytes + t * size, 1, parallel);
      for (EpisodeRecorder& recorder : recorders) {
        good = good && recorder.Add(structure);
      }
      OP_REQUIRES(context, good,
                  absl::ResourceExhaustedError(
                      "frames have more than 2^31 - 1 distinct patches"));
      for (size_t k = 0; k < nodes.size(); ++k) {
        states[k].push_back(
            structure.id(nodes[k], 0) /
            static_cast<int32_t>(structure.maps()[nodes[k]].pixels()));
      }
    }
    OutputStructure(context, structure, &recorders, states);
  }

 private:
  Graph graph_;
};

class TakeFramesOp : public GuardedOp {
 public:
  explicit TakeFramesOp(OpKernelConstruction* context) : GuardedOp(context) {
    OP_REQUIRES_OK(context, ReadNodes(context, &graph_));
  }

  void DoCompute(OpKernelContext* context) override {
    const Tensor& pixels = context->input(1);
    OP_REQUIRES_OK(context, CheckRank("frames", context->input(0), 1, "[F]"));
    OP_REQUIRES(context, pixels.dims() == 2,
                Mismatch("pixels", "[U, C]", pixels));
    const Tensor& order = context->input(2);
    OP_REQUIRES_OK(context, CheckRank("order", order, 1, "[T]"));
    Tensor frames;
    OP_REQUIRES_OK(context, ReadIds(context, "frames", context->input(0), 0,
                                    order.dim_size(0), &frames));
    OP_REQUIRES_OK(
        context, CheckCountable("the number of frames", {frames.dim_size(0)}));
    VideoView video;
    video.order = Ids<int32_t>(order);
    video.pixels = pixels.dim_size(0);
    int input = 3;
    for (const Node& node : graph_.nodes) {
      if (!node.has_patches()) continue;
      const Tensor& patches = context->input(input++);
      OP_REQUIRES(
          context, patches.dims() == 2 && patches.dim_size(1) == node.taps(),
          Mismatch("patches", absl::StrCat("[M, ", node.taps(), "]").c_str(),
                   patches));
      video.patches.push_back(Ids<int32_t>(patches));
    }
    const StructureCounts counts(graph_);
    const int shown = static_cast<int>(counts.shown);
    for (int k = 0; k < shown; ++k) {
      const Tensor& pairs = context->input(input + k);
      const Tensor& contents = context->input(input + shown + k);
      const Tensor& runs = context->input(input + 2 * shown + k);
      OP_REQUIRES_OK(context, CheckShown(pairs, contents, runs));
      video.shown.push_back(
          {Ids<Pair>(pairs), Ids<int32_t>(contents), Ids<Run>(runs)});
    }
    input += 3 * shown;
    for (int k = 0; k < counts.states; ++k) {
      video.states.push_back(Ids<int32_t>(context->input(input + k)));
    }
    TakenVideo taken;
    const std::string error =
        TakeFrames(graph_, video, Ids<int32_t>(frames), &taken);
    OP_REQUIRES(context, error.empty(),
                absl::InvalidArgumentError(absl::StrCat(
                    error, " are not those of a video of the nodes")));
    const auto size = [](const auto& v) {
      return static_cast<int64_t>(v.size());
    };
    const int64_t channels = pixels.dim_size(1);
    Tensor* out = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(
                                0, {size(taken.pixels), channels}, &out));
    GatherRows(pixels.flat<float>().data(), channels, channels,
               taken.pixels.data(), size(taken.pixels),
               out->flat<float>().data());
    OutputIds(context, 1, {size(taken.order)}, taken.order.data());
    int output = 2;
    for (const Node& node : graph_.nodes) {
      if (!node.has_patches()) continue;
      const auto& patches = taken.patches[output - 2];
      OutputIds(context, output++, {size(patches) / node.taps(), node.taps()},
                patches.data());
    }
    for (int k = 0; k < shown; ++k) {
      const TakenVideo::Shown& map = taken.shown[k];
      OutputShown(context, output + k, shown, map.pairs, map.contents,
                  map.runs);
    }
    output += 3 * shown;
    for (const auto& state : taken.states) {
      OutputIds(context, output++, {size(state)}, state.data());
    }
  }

 private:
  template <typename T>
  static View<T> Ids(const Tensor& tensor) {
    return {reinterpret_cast<const T*>(tensor.flat<int32_t>().data()),
            static_cast<int64_t>(tensor.NumElements() * sizeof(int32_t) /
                                 sizeof(T))};
  }

  Graph graph_;
};

class FrameIdsOp : public GuardedOp {
 public:
  explicit FrameIdsOp(OpKernelConstruction* context) : GuardedOp(context) {
    OP_REQUIRES_OK(context, context->GetAttr("height", &height_));
    OP_REQUIRES_OK(context, context->GetAttr("width", &width_));
    OP_REQUIRES_OK(context,
                   CheckCountable("height * width", {height_, width_}));
  }

  void DoCompute(OpKernelContext* context) override {
    const Tensor& pairs = context->input(0);
    const Tensor& contents = context->input(1);
    const Tensor& runs = context->input(2);
    const Tensor& order = context->input(3);
    OP_REQUIRES_OK(context, CheckShown(pairs, contents, runs));
    OP_REQUIRES_OK(context, CheckRank("order", order, 1, "[T]"));
    OP_REQUIRES_OK(context,
                   CheckIds("contents", contents, -1, pairs.dim_size(0)));
    const int64_t frames = order.dim_size(0), size = height_ * width_;
    OP_REQUIRES_OK(context, CheckIds("order", order, 0, frames));
    Tensor* out = nullptr;
    OP_REQUIRES_OK(context, AllocateOutput(context, 0, {frames, size}, &out));
    // By number first.
    std::vector<int32_t> ids(Product({frames, size}), 0);
    const auto* pair =
        reinterpret_cast<const Pair*>(pairs.flat<int32_t>().data());
    const auto* run = reinterpret_cast<const Run*>(runs.flat<int32_t>().data());
    for (int64_t i = 0; i < runs.dim_size(0); ++i) {
      const auto [tile, content, begin, end] = run[i];
      OP_REQUIRES(
          context,
          content >= 0 && content < contents.dim_size(0) && begin >= 0 &&
              begin <= end && end <= frames,
          absl::InvalidArgumentError(absl::StrCat(
              "runs must be (tile, content, begin, end) within ",
              contents.dim_size(0), " contents and ", frames, " frames, got (",
              tile, ", ", content, ", ", begin, ", ", end, ") at ", i)));
      const int32_t* shows =
          contents.flat<int32_t>().data() + content * Tiles::kPositions;
      for (int64_t k = 0; k < Tiles::kPositions; ++k) {
        if (shows[k] < 0) continue;
        const auto [position, row] = pair[shows[k]];
        OP_REQUIRES(context, position >= 0 && position < size && row >= 0,
                    absl::InvalidArgumentError(absl::StrCat(
                        "pairs must be (position, row) within ", size,
                        " positions, got (", position, ", ", row, ")")));
        for (int64_t t = begin; t < end; ++t) ids[t * size + position] = row;
      }
    }
    for (int64_t t = 0; t < frames; ++t) {
      std::copy_n(ids.data() + order.flat<int32_t>()(t) * size, size,
                  out->flat<int32_t>().data() + t * size);
    }
  }

 private:
  int64_t height_ = 1, width_ = 1;
};

// Checks rows, patches and kernel, and puts their sizes together.
absl::Status ReadPatchShape(OpKernelContext* context, int64_t groups,
                            PatchShape* shape) {
  const Tensor& rows = context->input(0);
  const Tensor& patches = context->input(1);
  const Tensor& kernel = context->input(2);
  TF_RETURN_IF_ERROR(CheckRank("rows", rows, 2, "[U, C]"));
  TF_RETURN_IF_ERROR(CheckRank("patches", patches, 2, "[M, taps]"));
  TF_RETURN_IF_ERROR(
      CheckRank("kernel", kernel, 4, "[height, width, C / groups, filters]"));
  shape->rows = rows.dim_size(0);
  shape->channels = rows.dim_size(1);
  shape->patches = patches.dim_size(0);
  shape->taps = patches.dim_size(1);
  shape->filters = kernel.dim_size(3);
  shape->groups = groups;
  if (kernel.NumElements() == 0 || groups > shape->channels ||
      kernel.dim_size(0) * kernel.dim_size(1) != shape->taps ||
      kernel.dim_size(2) * groups != shape->channels ||
      shape->filters % groups != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "kernel must be [height, width, C / groups, filters] with height * "
        "width = taps and groups = ",
        groups, ", got ", kernel.shape().DebugString(), " for rows ",
        rows.shape().DebugString(), " and patches ",
        patches.shape().DebugString()));
  }
  return CheckIds("patches", patches, -1, shape->rows);
}

class PatchProductOp : public GuardedOp {
 public:
  explicit PatchProductOp(OpKernelConstruction* context) : GuardedOp(context) {
    OP_REQUIRES_OK(context, context->GetAttr("groups", &groups_));
    bool relu = false;
    OP_REQUIRES_OK(context, context->GetAttr("relu", &relu));
    Activation activation;
    OP_REQUIRES(context,
                Activation::Make(relu ? "relu" : "linear", {}, &activation),
                absl::InternalError("no relu"));
    ops_ = RowOps(activation);
  }

  void DoCompute(OpKernelContext* context) override {
    PatchShape shape;
    OP_REQUIRES_OK(context, ReadPatchShape(context, groups_, &shape));
    const Tensor& bias = context->input(3);
    OP_REQUIRES(context,
                bias.dims() == 1 && (bias.dim_size(0) == 0 ||
                                     bias.dim_size(0) == shape.filters),
                Mismatch("bias", "[filters] or [0]", bias));
    Tensor* out = nullptr;
    OP_REQUIRES_OK(
        context,
        AllocateOutput(context, 0, {shape.patches, shape.filters}, &out));
    if (out->NumElements() == 0) return;
    UseHugePages(out->data(), out->TotalBytes());
    PackedKernel kernel;
    kernel.Pack(context->input(2).flat<float>().data(),
                bias.NumElements() == 0 ? nullptr : bias.flat<float>().data(),
                shape.taps, shape.channels, shape.filters, shape.groups);
    const float* rows = context->input(0).flat<float>().data();
    const int32_t* patches = context->input(1).flat<int32_t>().data();
    float* products = out->flat<float>().data();
    kernel.ForBlocks(
        shape.patches, OpThreads(context), [&](int64_t first, int64_t size) {
          kernel.Multiply(rows, patches + first * shape.taps, size, ops_,
                          nullptr, products + first * shape.filters);
        });
  }

 private:
  int64_t groups_ = 1;
  RowOps ops_;
};

class PatchProductGradOp : public GuardedOp {
 public:
  explicit PatchProductGradOp(OpKernelConstruction* context)
      : GuardedOp(context) {
    OP_REQUIRES_OK(context, context->GetAttr("groups", &groups_));
    OP_REQUIRES_OK(context, context->GetAttr("relu", &relu_));
    OP_REQUIRES_OK(context, context->GetAttr("constant", &constant_));
  }

  void DoCompute(OpKernelContext* context) override {
    PatchShape shape;
    OP_REQUIRES_OK(context, ReadPatchShape(context, groups_, &shape));
    const Tensor& products = context->input(3);
    const Tensor& gradient = context->input(4);
    OP_REQUIRES(context, IsMatrix(products, shape.patches, shape.filters),
                Mismatch("products", "[M, filters]", products));
    OP_REQUIRES(context, IsMatrix(gradient, shape.patches, shape.filters),
                Mismatch("gradient", "[M, filters]", gradient));
    Tensor *rows = nullptr, *kernel = nullptr, *bias = nullptr;
    OP_REQUIRES_OK(
        context, context->allocate_output(0, context->input(0).shape(), &rows));
    OP_REQUIRES_OK(context, context->allocate_output(
                                1, context->input(2).shape(), &kernel));
    OP_REQUIRES_OK(context,
                   context->allocate_output(2, {shape.filters}, &bias));
    UseHugePages(rows->data(), rows->TotalBytes());
    rows->flat<float>().setZero();
    kernel->flat<float>().setZero();
    bias->flat<float>().setZero();
    PatchGradients(shape, context->input(0).flat<float>().data(),
                   context->input(1).flat<int32_t>().data(),
                   context->input(2).flat<float>().data(),
                   relu_ ? products.flat<float>().data() : nullptr,
                   gradient.flat<float>().data(), OpThreads(context),
                   constant_ ? nullptr : rows->flat<float>().data(),
                   kernel->flat<float>().data(), bias->flat<float>().data());
  }

 private:
  int64_t groups_ = 1;
  bool relu_ = false, constant_ = false;
};

// PatchPool and its gradient.
template <bool kGradient>
class PatchPoolOp : public GuardedOp {
 public:
  explicit PatchPoolOp(OpKernelConstruction* context) : GuardedOp(context) {
    std::string kind;
    OP_REQUIRES_OK(context, context->GetAttr("kind", &kind));
    kind_ = kind == "max"    ? Pooling::kMax
            : kind == "mean" ? Pooling::kMean
                             : Pooling::kSum;
  }

  void DoCompute(OpKernelContext* context) override {
    const Tensor& rows = context->input(0);
    const Tensor& patches = context->input(1);
    OP_REQUIRES_OK(context, CheckRank("rows", rows, 2, "[U, C]"));
    OP_REQUIRES_OK(context, CheckRank("patches", patches, 2, "[M, taps]"));
    OP_REQUIRES_OK(context, CheckIds("patches", patches, -1, rows.dim_size(0)));
    const int64_t count = patches.dim_size(0), channels = rows.dim_size(1);
    Tensor* out = nullptr;
    if constexpr (kGradient) {
      const Tensor& gradient = context->input(2);
      OP_REQUIRES(context, IsMatrix(gradient, count, channels),
                  Mismatch("gradient", "[M, C]", gradient));
      OP_REQUIRES_OK(context, context->allocate_output(0, rows.shape(), &out));
      out->flat<float>().setZero();
      PoolGradients(kind_, rows.flat<float>().data(), channels,
                    patches.flat<int32_t>().data(), patches.dim_size(1), count,
                    gradient.flat<float>().data(), out->flat<float>().data());
    } else {
      OP_REQUIRES_OK(context,
                     AllocateOutput(context, 0, {count, channels}, &out));
      PoolPatches(kind_, rows.flat<float>().data(), channels,
                  patches.flat<int32_t>().data(), patches.dim_size(1), count,
                  out->flat<float>().data());
    }
  }

 private:
  Pooling kind_ = Pooling::kMax;
};

// ContentProduct and its gradient. That keeps nothing of the size of the pairs:
// there are as many as a tenth of all that is remembered of an episode.
template <bool kGradient>
class ContentProductOp : public GuardedOp {
 public:
  using GuardedOp::GuardedOp;

  void DoCompute(OpKernelContext* context) override {
    const Tensor& rows = context->input(0);
    const Tensor& pairs = context->input(1);
    const Tensor& contents = context->input(2);
    const Tensor& weights = context->input(3);
    OP_REQUIRES_OK(context, CheckRank("rows", rows, 2, "[U, C]"));
    OP_REQUIRES_OK(context, CheckRank("contents", contents, 2, "[E, size]"));
    OP_REQUIRES_OK(context,
                   CheckRank("weights", weights, 3, "[positions, C, units]"));
    OP_REQUIRES(context, pairs.dims() == 2 && pairs.dim_size(1) == 2,
                Mismatch("pairs", "[D, 2]", pairs));
    OP_REQUIRES(
        context, weights.dim_size(1) == rows.dim_size(1),
        Mismatch("weights", "[positions, C, units] for rows [U, C]", weights));
    const int64_t count = pairs.dim_size(0), channels = rows.dim_size(1);
    const int64_t units = weights.dim_size(2), positions = weights.dim_size(0);
    OP_REQUIRES_OK(context, CheckIds("contents", contents, -1, count));
    const auto* list =
        reinterpret_cast<const Pair*>(pairs.flat<int32_t>().data());
    for (int64_t i = 0; i < count; ++i) {
      OP_REQUIRES(context,
                  list[i].position >= 0 && list[i].position < positions &&
                      list[i].row >= 0 && list[i].row < rows.dim_size(0) &&
                      (i == 0 || list[i].position >= list[i - 1].position),
                  absl::InvalidArgumentError(absl::StrCat(
                      "pairs must be (position, row) within weights and rows, "
                      "ordered by position, got (",
                      list[i].position, ", ", list[i].row, ") at ", i)));
    }
    const float* from = rows.flat<float>().data();
    const float* matrices = weights.flat<float>().data();
    const int32_t* ids = contents.flat<int32_t>().data();
    const int64_t sums = contents.dim_size(0), size = contents.dim_size(1);
    if constexpr (kGradient) {
      const Tensor& gradient = context->input(4);
      OP_REQUIRES(context, IsMatrix(gradient, sums, units),
                  Mismatch("gradient", "[E, units]", gradient));
      Tensor *rows_gradient = nullptr, *weights_gradient = nullptr;
      OP_REQUIRES_OK(context,
                     context->allocate_output(0, rows.shape(), &rows_gradient));
      OP_REQUIRES_OK(context, context->allocate_output(1, weights.shape(),
                                                       &weights_gradient));
      UseHugePages(weights_gradient->data(), weights_gradient->TotalBytes());
      UseHugePages(rows_gradient->data(), rows_gradient->TotalBytes());
      rows_gradient->flat<float>().setZero();
      PairGradients(list, count, from, channels, matrices, positions, units,
                    PairUses(ids, sums, size, count),
                    gradient.flat<float>().data(), OpThreads(context),
                    rows_gradient->flat<float>().data(),
                    weights_gradient->flat<float>().data());
    } else {
      TensorShape shape;
      OP_REQUIRES_OK(context,
                     TensorShape::BuildTensorShape({count, units}, &shape));
      Tensor products;
      OP_REQUIRES_OK(context, context->allocate_temp(tensorflow::DT_FLOAT,
                                                     shape, &products));
      PairProducts(list, count, from, channels, matrices, positions, units,
                   OpThreads(context), products.flat<float>().data());
      Tensor* out = nullptr;
      OP_REQUIRES_OK(context, AllocateOutput(context, 0, {sums, units}, &out));
      const float* parts = products.flat<float>().data();
      float* to = out->flat<float>().data();
      OpThreads(context)(
          sums, size * (4 + units / 4), [=](int64_t begin, int64_t end) {
            PoolPatches(Pooling::kSum, parts, units, ids + begin * size, size,
                        end - begin, to + begin * units);
          });
    }
  }
};

// RunSum and its gradient: from values by pair to values by frame, and back.
template <bool kGradient>
class RunSumOp : public GuardedOp {
 public:
  using GuardedOp::GuardedOp;

  void DoCompute(OpKernelContext* context) override {
    const Tensor& from = context->input(0);
    const Tensor& runs = context->input(1);
    const Tensor& like = context->input(2);  // tells how many come out
    OP_REQUIRES_OK(context, CheckRank(kGradient ? "gradient" : "values", from,
                                      2, "[*, units]"));
    OP_REQUIRES(context, runs.dims() == 2 && runs.dim_size(1) == 4,
                Mismatch("runs", "[K, 4]", runs));
    OP_REQUIRES(context,
                kGradient
                    ? like.dims() == 2 && like.dim_size(1) == from.dim_size(1)
                    : like.dims() == 1,
                Mismatch(kGradient ? "values" : "order",
                         kGradient ? "[E, units]" : "[T]", like));
    const int64_t to_size = like.dim_size(0);
    const int64_t frames = kGradient ? from.dim_size(0) : to_size;
    const int64_t values = kGradient ? to_size : from.dim_size(0);
    const int64_t count = runs.dim_size(0), units = from.dim_size(1);
    const auto* list =
        reinterpret_cast<const Run*>(runs.flat<int32_t>().data());
    for (int64_t i = 0; i < count; ++i) {
      OP_REQUIRES(context,
                  list[i].tile >= 0 && list[i].tile < count &&
                      list[i].content >= 0 && list[i].content < values &&
                      list[i].begin >= 0 && list[i].begin <= list[i].end &&
                      list[i].end <= frames,
                  absl::InvalidArgumentError(absl::StrCat(
                      "runs must be (tile, content, begin, end) within ", count,
                      " tiles, ", values, " values and ", frames,
                      " frames, got (", list[i].tile, ", ", list[i].content,
                      ", ", list[i].begin, ", ", list[i].end, ") at ", i)));
    }
    Tensor* out = nullptr;
    OP_REQUIRES_OK(context, AllocateOutput(context, 0, {to_size, units}, &out));
    if (out->NumElements() == 0) return;
    const float* data = from.flat<float>().data();
    float* to = out->flat<float>().data();
    if constexpr (kGradient) {
      out->flat<float>().setZero();
      RunGradients(list, count, data, units, frames, to);
    } else {
      OP_REQUIRES(context, RunSums(list, count, data, units, frames, to),
                  absl::InvalidArgumentError("runs of a tile overlap"));
    }
  }
};

#define REGISTER_CPU(name, ...) \
  REGISTER_KERNEL_BUILDER(      \
      Name("ReuseTF>" name).Device(tensorflow::DEVICE_CPU), __VA_ARGS__)
REGISTER_KERNEL_BUILDER(Name("ReuseTF>VideoStructure")
                            .Device(tensorflow::DEVICE_CPU)
                            .TypeConstraint<float>("T"),
                        VideoStructureOp<float>);
REGISTER_KERNEL_BUILDER(Name("ReuseTF>VideoStructure")
                            .Device(tensorflow::DEVICE_CPU)
                            .TypeConstraint<uint8_t>("T"),
                        VideoStructureOp<uint8_t>);
REGISTER_CPU("TakeFrames", TakeFramesOp);
REGISTER_CPU("FrameIds", FrameIdsOp);
REGISTER_CPU("PatchProduct", PatchProductOp);
REGISTER_CPU("PatchProductGrad", PatchProductGradOp);
REGISTER_CPU("PatchPool", PatchPoolOp<false>);
REGISTER_CPU("PatchPoolGrad", PatchPoolOp<true>);
REGISTER_CPU("ContentProduct", ContentProductOp<false>);
REGISTER_CPU("ContentProductGrad", ContentProductOp<true>);
REGISTER_CPU("RunSum", RunSumOp<false>);
REGISTER_CPU("RunSumGrad", RunSumOp<true>);
#undef REGISTER_CPU

}  // namespace
}  // namespace reuse_tf
