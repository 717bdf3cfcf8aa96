#include "custom_ops/kernels/graph/network.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>

#include "custom_ops/kernels/arithmetic/group_norm.h"
#include "custom_ops/kernels/base/float_mode.h"

namespace reuse_tf {
namespace {

// Content reuse is given up in a map, for a while, when so large a part of the
// rows at changed positions was of patches never seen before...
constexpr double kWorthless = 0.9;
// ... in so many frames, or in those whose changes took as much as this many
// whole frames take, whichever is less...
constexpr int64_t kTrial = 64, kWholeFrames = 4;
// ... and is tried again after so many others.
constexpr int64_t kPause = 1024;

// A recording of more than these, some 400 and 250 MB, is not kept.
constexpr int64_t kMaxContents = 4 << 20, kMaxRuns = 16 << 20;

// The bounds of each map's table: the user's, or such that all tables, with
// their keys, slots and activations, stay within some bytes together. If all
// are full at once each has a part in proportion to the positions of its map.
// But what is seen again and again leaves the first maps with less, so that
// each may take what others leave, to some times its part: address space is
// reserved for so much.
Structure::Bounds RowBounds(const Graph& graph, int64_t max_rows,
                            int64_t bytes) {
  constexpr int64_t kSlots = 32, kMostParts = 8;
  constexpr double kMax = std::numeric_limits<int32_t>::max();
  Structure::Bounds bounds;
  bounds.bytes = max_rows > 0 ? 0 : bytes;
  double frame = 0;  // bytes of a row at each position
  for (const Node& node : graph.nodes) {
    const bool is_frame = node.kind == Node::kFrames;
    const int64_t key = is_frame ? graph.frame.pixel_size() : 4 * node.taps();
    bounds.row_bytes.push_back(key + 4 * node.channels + kSlots);
    if (is_frame || node.has_patches()) {
      frame += static_cast<double>(node.pixels()) * bounds.row_bytes.back();
    }
  }
  for (const Node& node : graph.nodes) {
    const bool table = node.kind == Node::kFrames || node.has_patches();
    const double part = std::clamp(bytes * node.pixels() / frame, 1.0, kMax);
    bounds.parts.push_back(static_cast<int64_t>(part));
    const auto most = static_cast<int64_t>(std::min(kMostParts * part, kMax));
    bounds.rows.push_back(!table ? 0 : max_rows > 0 ? max_rows : most);
  }
  if (graph.frame.is_byte()) bounds.rows[0] = kByteValues;
  return bounds;
}

// How many contents of the tiles of each shown map `bytes` hold, with their
// keys, slots and sums.
std::vector<int64_t> MaxTiles(const Graph& graph, int64_t bytes) {
  const std::vector<int32_t> shown = graph.Shown();
  std::vector<int64_t> sizes, result;
  for (const int32_t map : shown) {
    int64_t units = 0;
    for (const Node& node : graph.nodes) {
      if (node.whole() && node.inputs[0] == map) units += node.channels;
    }
    sizes.push_back(4 * (Tiles(graph, map).key_words() + units) + 32);
  }
  for (const int64_t size : sizes) {
    result.push_back(bytes / static_cast<int64_t>(shown.size()) / size);
  }
  return result;
}

using WeightIterator = std::vector<const float*>::const_iterator;

// The function of a row with its weights, which it takes from `next` on.
RowOp MakeRowOp(const RowFunction& function, int64_t channels,
                WeightIterator* next) {
  RowOp op = function.op;
  if (function.kind == RowFunction::kGiven) return op;
  const float* gamma = function.has_gamma ? *(*next)++ : nullptr;
  const float* beta = function.has_beta ? *(*next)++ : nullptr;
  op.scale.assign(channels, 1);
  op.offset.assign(channels, 0);
  if (gamma != nullptr) op.scale.assign(gamma, gamma + channels);
  if (beta != nullptr) op.offset.assign(beta, beta + channels);
  op.kind = RowOp::kAffine;
  switch (function.kind) {
    case RowFunction::kBatchNorm: {
      const float* mean = *(*next)++;
      const float* variance = *(*next)++;
      for (int64_t c = 0; c < channels; ++c) {
        op.scale[c] /= std::sqrt(variance[c] + function.epsilon);
        op.offset[c] -= mean[c] * op.scale[c];
      }
      break;
    }
    case RowFunction::kNormalization: {
      const float* mean = *(*next)++;
      const float* variance = *(*next)++;
      const int64_t step = function.values > 1;
      op.kind = RowOp::kCentered;
      for (int64_t c = 0; c < channels; ++c) {
        op.scale[c] =
            1 / std::max(std::sqrt(variance[c * step]), function.epsilon);
        op.offset[c] = mean[c * step];
      }
      break;
    }
    case RowFunction::kLayerNorm:
      op.kind = RowOp::kLayerNorm;
      op.epsilon = function.epsilon;
      break;
    case RowFunction::kPRelu: {
      const float* alpha = *(*next)++;
      op.kind = RowOp::kPRelu;
      op.scale.assign(alpha, alpha + channels);
      op.offset.clear();
      break;
    }
    case RowFunction::kGiven:
    case RowFunction::kScale:
      break;
  }
  return op;
}

double Seconds() {
  return std::chrono::duration<double>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

}  // namespace

Network::Sum::Sum(const Graph& graph, int32_t node, const Tiles& tiles)
    : node(node),
      map(graph.nodes[node].inputs[0]),
      tree(graph.nodes[map].pixels() * graph.nodes[map].channels,
           graph.nodes[map].channels, graph.nodes[node].channels, tiles.Order(),
           tiles.count() * Tiles::kPositions,
           graph.nodes[node].kind == Node::kGlobal &&
                   graph.nodes[node].pooling == Pooling::kMax
               ? Fold::kMax
               : Fold::kSum) {}

Network::Network(const Graph& graph, const Options& options)
    : graph_(graph),
      options_(options),
      set_(ActiveInstructionSet()),
      structure_(graph, RowBounds(graph, options.max_rows, options.table_bytes),
                 MaxTiles(graph, options.tile_bytes), options.hash_mask),
      in_turns_(graph.HasThresholds()),
      content_rows_(graph.nodes.size()),
      temporal_rows_(graph.nodes.size()),
      weights_(graph.nodes.size()),
      recent_(graph.nodes.size()) {
  for (const Node& node : graph_.nodes) {
    bool temporal = node.per_frame || node.kind == Node::kWeights ||
                    options.reuse == Choice::kTemporal || in_turns_;
    for (const int32_t i : node.inputs) {
      temporal |= graph_.nodes[i].kind != Node::kWeights &&
                  start_[i] == Reuse::kTemporal;
    }
    start_.push_back(temporal ? Reuse::kTemporal : Reuse::kContent);
    if (node.kind != Node::kDense && node.kind != Node::kGlobal) continue;
    const int32_t index = static_cast<int32_t>(start_.size()) - 1;
    sums_.emplace_back(graph_, index, Tiles(graph_, node.inputs[0]));
    for (const Structure::Shown& shown : structure_.shown()) {
      if (shown.node == node.inputs[0]) sums_.back().shown = &shown;
    }
  }
  Reset();
}

void Network::Reset() {
  ForgetRecent();
  pause_frames_ = 0;
  NetworkStats stats;
  stats.maps.resize(graph_.nodes.size());
  Restart(start_);
  stats_ = std::move(stats);
}

void Network::Restart(std::vector<Reuse> reuse) {
  whole_ = false;
  reuse_ = std::move(reuse);
  structure_.Restart(reuse_);
  recorders_.clear();
  pixels_known_ = false;
  for (size_t i = 0; i < reuse_.size(); ++i) {
    if (graph_.nodes[i].kind == Node::kWeights) continue;
    if (reuse_[i] == Reuse::kTemporal) {
      content_rows_[i] = {};
      continue;
    }
    temporal_rows_[i] = std::vector<float>();
    if (content_rows_[i].data() == nullptr) {
      content_rows_[i] =
          LazyBuffer<float>(Product({max_rows()[i], graph_.nodes[i].channels}));
    }
  }
  for (Sum& sum : sums_) {
    if (reuse_[sum.map] == Reuse::kTemporal) {
      sum.tiles = {};
      continue;
    }
    if (sum.tiles.data() == nullptr) {
      sum.tiles = LazyBuffer<float>(
          Product({sum.shown->max_contents, sum.tree.units()}));
    }
  }
  whole_ = true;
}

void Network::MakeTemporal(int64_t map) {
  const int64_t positions =
      structure_.streams() * structure_.maps()[map].pixels();
  const int64_t channels = graph_.nodes[map].channels;
  std::vector<float> rows(Product({positions, channels}));
  for (int64_t at = 0; at < positions; ++at) {
    std::copy_n(row(map, at), channels, rows.data() + at * channels);
  }
  temporal_rows_[map].swap(rows);
  content_rows_[map] = {};
  reuse_[map] = Reuse::kTemporal;
  structure_.MakeTemporal(map);
  for (Sum& sum : sums_) {
    if (sum.map == map) sum.tiles = {};
  }
}

void Network::SetWeights(const std::vector<const float*>& weights,
                         bool changed) {
  const FlushDenormals flush;
  auto next = weights.begin();
  for (size_t i = 0; i < graph_.nodes.size(); ++i) {
    const Node& node = graph_.nodes[i];
    Weights& w = weights_[i];
    const int64_t channels = node.channels;
    if (node.kind == Node::kWeights) {
      temporal_rows_[i].assign(*next, *next + node.pixels() * channels);
      ++next;
    } else if (node.kind == Node::kConv || node.kind == Node::kDense) {
      w.matrix = *next++;
      w.bias = node.use_bias ? *next++ : nullptr;
    }
    if (node.kind == Node::kConv) {
      const int64_t taps = node.taps(), depth = graph_.input(node).channels;
      const float* kernel = w.matrix;
      std::vector<float> turned;
      if (node.transposed) {
        turned.resize(taps * depth * channels);
        for (int64_t t = 0; t < taps; ++t) {
          float* to = turned.data() + (taps - 1 - t) * depth * channels;
          for (int64_t f = 0; f < channels; ++f, kernel += depth) {
            for (int64_t c = 0; c < depth; ++c) {
              to[c * channels + f] = kernel[c];
            }
          }
        }
        kernel = turned.data();
      }
      w.kernel.Pack(kernel, w.bias, taps, depth, channels, node.groups, set_);
    }
    w.ops.clear();
    for (const RowFunction& function : node.functions) {
      w.ops.push_back(MakeRowOp(function, channels, &next));
    }
  }
  if (changed) Restart(reuse_);
}

void Network::Step(const void* frames, int64_t streams,
                   const ParallelFor& parallel, float* const* outputs,
                   bool kept) {
  const FlushDenormals flush;
  if (!whole_) Restart(reuse_);
  try {
    TryStep(static_cast<const uint8_t*>(frames), streams, parallel, outputs,
            kept);
  } catch (...) {
    whole_ = false;
    recorders_.clear();
    throw;
  }
}

void Network::TryStep(const uint8_t* frames, int64_t streams,
                      const ParallelFor& parallel, float* const* outputs,
                      bool kept) {
  AdaptReuse();
  if (recording_ == Recording::kAsked) StartRecording();
  const double begin = Seconds();
  double structured = 0, whole = 0;  // seconds
  auto sum = sums_.begin();
  // What a node does with its part of the structure done. In their order.
  const auto compute = [&](size_t i) {
    if (!graph_.nodes[i].whole()) {
      ComputeRows(i, parallel);
      return;
    }
    const double start = Seconds();
    if (sum != sums_.end() && sum->node == static_cast<int32_t>(i)) {
      ComputeSum(&*sum++, streams, parallel);
    } else {
      ComputeMap(i);
    }
    whole += Seconds() - start;
  };
  if (in_turns_) {
    // What is handed on to a map depends on the rows of those before it.
    structure_.Begin(frames, streams, parallel);
    ResizeRows(streams);
    ComputePixels();
    for (size_t i = 1; i < graph_.nodes.size(); ++i) {
      const double start = Seconds();
      structure_.Update(i);
      structured += Seconds() - start;
      const bool limited = graph_.nodes[i].threshold > 0;
      if (limited) KeepRows(i);
      compute(i);
      if (limited) HandOn(i, parallel);
    }
    structure_.End();
  } else {
    StepStructure(frames, streams, parallel);
    for (EpisodeRecorder& recorder : recorders_) {
      if (recorder.Add(structure_)) continue;
      recorders_.clear();
      break;
    }
    structured = Seconds() - begin;
    ResizeRows(streams);
    ComputePixels();
    for (size_t i = 1; i < graph_.nodes.size(); ++i) compute(i);
  }
  const double computed = Seconds();
  for (size_t i = 0; i < graph_.outputs.size(); ++i) {
    WriteOutput(graph_.outputs[i], streams, outputs[i], kept);
  }
  stats_.structure_seconds += structured;
  stats_.rows_seconds += computed - begin - structured - whole;
  stats_.dense_seconds += whole + Seconds() - computed;
  CountStep();
}

void Network::ResizeRows(int64_t streams) {
  const auto& maps = structure_.maps();
  for (size_t i = 0; i < maps.size(); ++i) {
    if (maps[i].content() || graph_.nodes[i].kind == Node::kWeights) continue;
    temporal_rows_[i].resize(
        Product({streams, maps[i].pixels(), graph_.nodes[i].channels}));
  }
}

void Network::KeepRows(size_t index) {
  const auto& positions = structure_.maps()[index].positions;
  const int64_t channels = graph_.nodes[index].channels;
  kept_rows_.resize(positions.size() * channels);
  float* to = kept_rows_.data();
  for (const int32_t at : positions) {
    std::copy_n(temporal_rows_[index].data() + at * channels, channels, to);
    to += channels;
  }
}

void Network::HandOn(size_t index, const ParallelFor& parallel) {
  const Structure::Map& map = structure_.maps()[index];
  const int64_t channels = graph_.nodes[index].channels;
  const int64_t pixels = map.pixels();
  const float threshold = graph_.nodes[index].threshold;
  moved_.resize(map.positions.size());
  parallel(moved_.size(), 8 + channels / 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int32_t at = map.positions[i];
      const float* kept = kept_rows_.data() + i * channels;
      float* row = temporal_rows_[index].data() + at * channels;
      moved_[i] = structure_.fresh(at / pixels) ||
                  Differ(row, kept, channels, threshold);
      if (!moved_[i]) std::copy_n(kept, channels, row);
    }
  });
  structure_.HandOn(index, moved_);
}

void Network::StartRecording() {
  recording_ = Recording::kRunning;
  Restart(start_);
  ForgetRecent();
  pause_frames_ = 0;
  for (size_t i = 0; i < start_.size(); ++i) {
    const Node& node = graph_.nodes[i];
    if (start_[i] == Reuse::kTemporal && !node.per_frame &&
        node.kind != Node::kWeights) {
      return;
    }
  }
  for (size_t k = 0; k < structure_.shown().size(); ++k) {
    recorders_.emplace_back(structure_, k, kMaxContents, kMaxRuns);
  }
}

void Network::StepStructure(const uint8_t* frames, int64_t streams,
                            const ParallelFor& parallel) {
  if (structure_.Step(frames, streams, parallel)) return;
  // A table is full: the frame is computed afresh in empty ones.
  ++stats_.clears;
  ReleaseRows();
  Restart(reuse_);
  while (!structure_.Step(frames, streams, parallel)) {
    // One frame alone does not fit: not from here on.
    ++stats_.switches;
    pause_frames_ = 0;
    ForgetRecent();
    std::vector<Reuse> reuse = reuse_;
    reuse[structure_.full()] = Reuse::kTemporal;
    for (size_t i = structure_.full() + 1; i < reuse.size(); ++i) {
      for (const int32_t input : graph_.nodes[i].inputs) {
        if (graph_.nodes[input].kind != Node::kWeights &&
            reuse[input] == Reuse::kTemporal) {
          reuse[i] = Reuse::kTemporal;
        }
      }
    }
    ReleaseRows();
    Restart(std::move(reuse));
  }
}

std::vector<EpisodeRecorder> Network::TakeRecording() {
  recording_ = Recording::kNone;
  std::vector<EpisodeRecorder> recorders;
  recorders.swap(recorders_);
  return recorders;
}

void Network::Release() {
  recording_ = Recording::kNone;
  // An assignment of {} would leave a vector its memory.
  for (auto& rows : temporal_rows_) rows = std::vector<float>();
  for (Sum& sum : sums_) sum.trees = std::vector<float>();
  ReleaseRows();
  Restart(start_);
}

void Network::ReleaseRows() {
  for (auto& rows : content_rows_) rows = {};
  for (Sum& sum : sums_) sum.tiles = {};
  structure_.Release();
}

void Network::ComputePixels() {
  const NewRows& pixels = structure_.maps()[0].rows;
  const int64_t channels = graph_.frame.channels;
  const bool all_bytes = pixels.raw_stride == 1;
  if (all_bytes && pixels_known_) return;
  pixels_known_ = all_bytes;
  for (int64_t i = 0; i < pixels.count; ++i) {
    const uint8_t* raw = pixels.raw + i * pixels.raw_stride;
    const int64_t id = pixels.ids == nullptr ? pixels.first + i : pixels.ids[i];
    float* row = rows(0) + id * channels;
    if (graph_.frame.bytes) {
      std::copy(raw, raw + channels, row);
    } else {
      std::memcpy(row, raw, channels * sizeof(float));
    }
    weights_[0].ops.Apply(row, channels);
  }
}

void Network::ComputeRows(size_t index, const ParallelFor& parallel) {
  const NewRows& what = structure_.maps()[index].rows;
  if (what.count == 0) return;
  const Node& node = graph_.nodes[index];
  const Weights& weights = weights_[index];
  const int64_t channels = node.channels, taps = node.taps();
  float* to = rows(index) + what.first * channels;
  if (node.kind == Node::kConv) {
    const float* from = rows(node.inputs[0]);
    const PackedKernel& kernel = weights.kernel;
    kernel.ForBlocks(what.count, parallel, [&](int64_t first, int64_t size) {
      kernel.Multiply(from, what.patches + first * taps, size, weights.ops,
                      what.ids == nullptr ? nullptr : what.ids + first,
                      what.ids == nullptr ? to + first * channels : to);
    });
    return;
  }
  std::vector<JoinInput> inputs;
  for (const int32_t i : node.inputs) {
    inputs.push_back({rows(i), graph_.nodes[i].channels});
  }
  // A value is read and combined in about a quarter of a cycle.
  parallel(
      what.count, 8 + taps * channels / 4, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const int32_t* patch = what.patches + i * taps;
          float* row = to + (what.ids == nullptr ? i : what.ids[i]) * channels;
          if (node.kind == Node::kPool) {
            PoolPatches(node.pooling, inputs[0].rows, channels, patch, taps, 1,
                        row);
          } else {
            JoinRows(node.join, inputs.data(), taps, patch, channels, row);
          }
          weights.ops.Apply(row, channels);
        }
      });
}

// A map that is made of a whole map, stream by stream.
void Network::ComputeMap(size_t index) {
  const Node& node = graph_.nodes[index];
  const int32_t from = node.inputs[0];
  const Node& input = graph_.nodes[from];
  const int64_t size = node.pixels() * node.channels;
  for (int64_t n = 0; n < structure_.streams(); ++n) {
    if (!structure_.changed(index, n)) continue;
    float* to = temporal_rows_[index].data() + n * size;
    const auto row_of = [&](int64_t position) {
      return row(from, n * input.pixels() + position);
    };
    if (node.kind == Node::kGroupNorm) {
      GroupNorm(row_of, input.pixels(), input.channels, node.groups,
                node.epsilon, to);
    } else if (node.kind == Node::kPermute) {
      // How far apart neighbours along each axis are in the input.
      const int64_t apart[] = {input.width * input.channels, input.channels, 1};
      float* next = to;
      for (int64_t y = 0; y < node.height; ++y) {
        for (int64_t x = 0; x < node.width; ++x) {
          for (int64_t c = 0; c < node.channels; ++c) {
            const int64_t at = y * apart[node.order[0]] +
                               x * apart[node.order[1]] +
                               c * apart[node.order[2]];
            *next++ = row_of(at / input.channels)[at % input.channels];
          }
        }
      }
    } else {
      for (int64_t p = 0; p < input.pixels(); ++p) {
        std::copy_n(row_of(p), input.channels, to + p * input.channels);
      }
    }
    for (int64_t p = 0; p < node.pixels(); ++p) {
      weights_[index].ops.Apply(to + p * node.channels, node.channels);
    }
  }
}

void Network::ComputeSum(Sum* sum, int64_t streams,
                         const ParallelFor& parallel) {
  const Structure::Map& map = structure_.maps()[sum->map];
  const Node& node = graph_.nodes[sum->node];
  const Weights& weights = weights_[sum->node];
  const DenseSum& tree = sum->tree;
  const int64_t leaves = map.pixels(), units = tree.units();
  tree.Resize(streams, &sum->trees);
  auto& changes = sum->changes;
  changes.clear();
  for (const int32_t at : map.positions) {
    const int32_t stream = at / static_cast<int32_t>(leaves);
    changes.push_back({static_cast<int32_t>(at - stream * leaves), stream});
  }
  if (streams > 1) SortByLeaf(&changes);
  const auto row_of = [&](const LeafChange& change) {
    return row(sum->map, change.stream * leaves + change.leaf);
  };
  float* trees = sum->trees.data();
  if (node.kind == Node::kGlobal) {
    tree.CopyLeaves(changes, row_of, trees);
  } else {
    tree.ComputeLeaves(changes, row_of, weights.matrix, set_, parallel, trees);
  }
  if (map.content()) {
    UpdateTiles(sum);
  } else if (!changes.empty()) {
    tree.UpdateSums(changes, streams, set_, trees);
  }
  for (const int32_t n : structure_.maps()[sum->node].positions) {
    const float* root = trees + ((n + 1) * tree.nodes() - 1) * units;
    float* values = temporal_rows_[sum->node].data() + n * units;
    std::copy_n(root, units, values);
    if (node.kind == Node::kGlobal && node.pooling == Pooling::kMean) {
      for (int64_t u = 0; u < units; ++u) values[u] /= leaves;
    }
    if (weights.bias != nullptr) {
      for (int64_t u = 0; u < units; ++u) values[u] += weights.bias[u];
    }
    weights.ops.Apply(values, units);
  }
}

// Sums up new tiles, takes the others from memory, and sums up what depends on
// them.
void Network::UpdateTiles(Sum* sum) {
  const Structure::Shown& shown = *sum->shown;
  const auto& changes = shown.changed;
  if (changes.empty()) return;
  const SumTree& tree = sum->tree.tree();
  const int64_t streams = structure_.streams(), units = sum->tree.units();
  constexpr size_t kAhead = 8;
  changed_tiles_.assign(streams * tree.words(1), 0);
  for (size_t i = 0; i < changes.size(); ++i) {
    if (i + kAhead < changes.size() && changes[i + kAhead].id >= 0) {
      __builtin_prefetch(sum->tiles.data() + changes[i + kAhead].id * units);
    }
    const Structure::TileChange& at = changes[i];
    float* nodes = sum->trees.data() + at.stream * tree.nodes() * units;
    float* root = nodes + (tree.first(1) + at.tile) * units;
    const bool is_new = at.id < 0 || at.id >= shown.first_new;
    if (is_new) tree.Sum(1, at.tile, units, set_, nodes);
    if (at.id >= 0) {
      float* known = sum->tiles.data() + at.id * units;
      std::memcpy(is_new ? known : root, is_new ? root : known,
                  units * sizeof(float));
    }
    changed_tiles_[at.stream * tree.words(1) + at.tile / 64] |=
        uint64_t{1} << (at.tile % 64);
  }
  for (int64_t n = 0; n < streams; ++n) {
    tree.SumAbove(1, changed_tiles_.data() + n * tree.words(1), units, set_,
                  sum->trees.data() + n * tree.nodes() * units);
  }
}

void Network::WriteOutput(int64_t index, int64_t streams, float* output,
                          bool kept) {
  const Structure::Map& map = structure_.maps()[index];
  const int64_t channels = graph_.nodes[index].channels;
  if (kept) {
    for (const int32_t at : map.positions) {
      std::copy_n(row(index, at), channels, output + at * channels);
    }
    return;
  }
  const int64_t count = streams * map.pixels();
  if (!map.content()) {
    std::copy_n(temporal_rows_[index].data(), count * channels, output);
    return;
  }
  for (int64_t at = 0; at < count; ++at) {
    std::copy_n(row(index, at), channels, output + at * channels);
  }
}

int64_t Network::Cost(size_t index) const {
  const Node& node = graph_.nodes[index];
  if (node.kind == Node::kConv) return graph_.KernelSize(node);
  if (node.kind == Node::kDense) {
    return graph_.input(node).channels * node.channels;
  }
  return 0;
}

void Network::CountStep() {
  const int64_t streams = structure_.streams();
  stats_.frames += streams;
  ++recent_frames_;
  ++pause_frames_;
  for (size_t i = 0; i < graph_.nodes.size(); ++i) {
    const Node& node = graph_.nodes[i];
    // Of sums the positions are those that are summed up.
    const bool summed = node.kind == Node::kDense || node.kind == Node::kGlobal;
    const Structure::Map& map = structure_.maps()[summed ? node.inputs[0] : i];
    const int64_t changed = map.any_changed ? map.changed.Count() : 0;
    int64_t made = map.rows.count;
    if (summed) {
      made = map.positions.size();
    } else if (map.rows.raw_stride == 1) {
      made = 0;  // Rows of bytes are made once.
    }
    const int64_t cost = Cost(i);
    NetworkStats::Map& stats = stats_.maps[i];
    stats.positions += streams * map.pixels();
    stats.changed += changed;
    stats.new_rows += made;
    stats.multiply_adds += made * cost;
    stats.dense_multiply_adds += streams * map.pixels() * cost;
    if (structure_.had_fresh_streams()) continue;
    recent_[i].changed += changed;
    recent_[i].made += made;
    recent_work_ += changed * cost;
    recent_dense_work_ += streams * map.pixels() * cost;
  }
}

void Network::ForgetRecent() {
  std::fill(recent_.begin(), recent_.end(), Recent());
  recent_frames_ = recent_work_ = recent_dense_work_ = 0;
}

void Network::AdaptReuse() {
  // What is recorded is content reuse, which would be searched for later.
  if (options_.reuse != Choice::kAuto || !recorders_.empty()) return;
  if (reuse_ != start_ && pause_frames_ >= kPause) {
    ++stats_.switches;
    pause_frames_ = 0;
    ForgetRecent();
    Restart(start_);
    return;
  }
  // The work of frames so far is that of recent_frames_ whole ones at most.
  if (recent_frames_ < kTrial &&
      recent_work_ * recent_frames_ <= kWholeFrames * recent_dense_work_) {
    return;
  }
  std::vector<bool> looked_at(reuse_.size(), false);  // by content reuse
  bool switched = false;
  for (int64_t i = reuse_.size() - 1; i >= 0; --i) {
    if (reuse_[i] == Reuse::kTemporal) continue;
    if (!looked_at[i] && recent_[i].made > kWorthless * recent_[i].changed) {
      MakeTemporal(i);
      switched = true;
      continue;
    }
    for (const int32_t input : graph_.nodes[i].inputs) looked_at[input] = true;
  }
  if (switched) {
    ++stats_.switches;
    pause_frames_ = 0;
  }
  ForgetRecent();
}

std::vector<int64_t> Network::Rows() const {
  std::vector<int64_t> rows;
  for (const Structure::Map& map : structure_.maps()) {
    const size_t i = rows.size();
    rows.push_back(max_rows()[i] == 0     ? 0
                   : !map.content()       ? structure_.streams() * map.pixels()
                   : map.table == nullptr ? kByteValues
                                          : map.table->size());
  }
  return rows;
}

}  // namespace reuse_tf
