// Compares whole networks over random graphs with the definitions, in double
// precision, and their bits with those of networks of other histories, hashes,
// bounds, threads, and kinds of reuse; all of it with failing allocations too.

#include "custom_ops/kernels/graph/network.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

#include "custom_ops/kernels/graph/random_graph.h"
#include "custom_ops/kernels/testing/reference.h"
#include "custom_ops/kernels/testing/testing.h"

namespace reuse_tf {
namespace {

using Weights = std::vector<std::vector<float>>;

Weights RandomWeights(const Graph& graph, Random* random) {
  Weights weights;
  for (const int64_t size : graph.WeightSizes()) {
    // Positive, as a variance has to be.
    weights.push_back(random->Floats(size));
    for (float& value : weights.back()) value = 0.01f + std::fabs(value) / 2;
  }
  return weights;
}

std::vector<const float*> Pointers(const Weights& weights) {
  std::vector<const float*> pointers;
  for (const auto& weight : weights) pointers.push_back(weight.data());
  return pointers;
}

// A function of rows, by its definition.
void Apply(const RowFunction& f, int64_t channels,
           Weights::const_iterator* next, std::vector<float>* rows) {
  const float* gamma = f.has_gamma ? (*next)++->data() : nullptr;
  const float* beta = f.has_beta ? (*next)++->data() : nullptr;
  const bool moments = f.kind == RowFunction::kBatchNorm ||
                       f.kind == RowFunction::kNormalization;
  const float* mean = moments ? (*next)++->data() : nullptr;
  const float* variance = moments ? (*next)++->data() : nullptr;
  const float* alpha =
      f.kind == RowFunction::kPRelu ? (*next)++->data() : nullptr;
  for (size_t i = 0; i < rows->size(); i += channels) {
    float* row = rows->data() + i;
    if (f.kind == RowFunction::kGiven) {
      f.op.Apply(row, channels);
      continue;
    }
    double row_mean = 0, row_variance = 0;
    for (int64_t c = 0; c < channels; ++c)
      row_mean += row[c] / double(channels);
    for (int64_t c = 0; c < channels; ++c) {
      row_variance += (row[c] - row_mean) * (row[c] - row_mean) / channels;
    }
    for (int64_t c = 0; c < channels; ++c) {
      double x = row[c];
      const int64_t m =
          f.kind == RowFunction::kNormalization && f.values == 1 ? 0 : c;
      switch (f.kind) {
        case RowFunction::kBatchNorm:
          x = (x - mean[m]) / std::sqrt(double{variance[m]} + f.epsilon);
          break;
        case RowFunction::kNormalization:
          x = (x - mean[m]) /
              std::max<double>(std::sqrt(variance[m]), f.epsilon);
          break;
        case RowFunction::kLayerNorm:
          x = (x - row_mean) / std::sqrt(row_variance + f.epsilon);
          break;
        case RowFunction::kPRelu:
          if (x < 0) x *= alpha[c];
          break;
        default:
          break;
      }
      row[c] = x * (gamma == nullptr ? 1 : gamma[c]) +
               (beta == nullptr ? 0 : beta[c]);
    }
  }
}

// One position of a window or a join, [channels], by the definition.
std::vector<float> AtPosition(const Graph& graph, const Node& node,
                              const std::vector<std::vector<float>>& maps,
                              const int32_t* patch, const float* kernel,
                              const float* bias) {
  std::vector<float> out;
  const Node& from = graph.input(node);
  const std::vector<float>& rows = maps[node.inputs[0]];
  if (node.kind == Node::kJoin && node.join == JoinKind::kConcatenate) {
    for (size_t j = 0; j < node.inputs.size(); ++j) {
      const int64_t channels = graph.nodes[node.inputs[j]].channels;
      const float* row = maps[node.inputs[j]].data() + patch[j] * channels;
      out.insert(out.end(), row, row + channels);
    }
    return out;
  }
  for (int64_t f = 0; f < node.channels; ++f) {
    if (node.kind == Node::kConv) {
      out.push_back(reference::Convolve(rows.data(), patch, node.taps(),
                                        from.channels, kernel, bias,
                                        node.channels, node.groups, f)
                        .value);
      continue;
    }
    std::vector<double> values;
    for (int64_t t = 0; t < node.taps(); ++t) {
      if (patch[t] < 0) continue;
      const int32_t input = node.inputs[node.kind == Node::kJoin ? t : 0];
      const int64_t channels = graph.nodes[input].channels;
      values.push_back(
          maps[input][patch[t] * channels + (channels > 1 ? f : 0)]);
    }
    double top = -3.4028234663852886e38, sum = 0, product = 1;
    double low = values.empty() ? 0 : values[0];
    for (const double value : values) {
      if (value > top) top = value;
      if (value < low) low = value;
      sum += value;
      product *= value;
    }
    if (node.kind == Node::kJoin && std::isnan(sum)) top = low = sum;
    if (node.kind == Node::kPool) {
      out.push_back(node.pooling == Pooling::kMax    ? top
                    : node.pooling == Pooling::kMean ? sum / values.size()
                                                     : sum);
      continue;
    }
    switch (node.join) {
      case JoinKind::kAdd:
        out.push_back(sum);
        break;
      case JoinKind::kSubtract:
        out.push_back(values[0] - values[1]);
        break;
      case JoinKind::kMultiply:
        out.push_back(product);
        break;
      case JoinKind::kAverage:
        out.push_back(sum / values.size());
        break;
      case JoinKind::kMaximum:
        out.push_back(top);
        break;
      case JoinKind::kMinimum:
        out.push_back(low);
        break;
      default:
        out.push_back(values[0] > 0 ? values[0] : values[0] * values[1]);
    }
  }
  return out;
}

// What a node makes of a whole map, by the definition.
std::vector<float> OfWhole(const Graph& graph, const Node& node,
                           const std::vector<float>& rows, const float* kernel,
                           const float* bias) {
  const Node& from = graph.input(node);
  const int64_t channels = from.channels;
  std::vector<float> out;
  if (node.kind == Node::kReshape) return rows;
  if (node.kind == Node::kPermute) {
    out.resize(rows.size());
    const int64_t sizes[] = {node.height, node.width, node.channels};
    int64_t at[3];  // along the axes of the input
    auto value = rows.begin();
    for (at[0] = 0; at[0] < from.height; ++at[0]) {
      for (at[1] = 0; at[1] < from.width; ++at[1]) {
        for (at[2] = 0; at[2] < channels; ++at[2]) {
          int64_t place = 0;
          for (int i = 0; i < 3; ++i) {
            place = place * sizes[i] + at[node.order[i]];
          }
          out[place] = *value++;
        }
      }
    }
    return out;
  }
  if (node.kind == Node::kDense) {
    for (int64_t u = 0; u < node.channels; ++u) {
      double sum = bias == nullptr ? 0 : bias[u];
      for (size_t i = 0; i < rows.size(); ++i) {
        sum += double{rows[i]} * kernel[i * node.channels + u];
      }
      out.push_back(sum);
    }
  } else if (node.kind == Node::kGlobal) {
    for (int64_t c = 0; c < channels; ++c) {
      double sum = 0, top = rows[c];
      for (size_t i = c; i < rows.size(); i += channels) {
        sum += rows[i];
        if (rows[i] > top || std::isnan(rows[i])) top = rows[i];
      }
      out.push_back(node.pooling == Pooling::kMax ? top : sum / from.pixels());
    }
  } else {
    const int64_t width = channels / node.groups;
    out.resize(rows.size());
    for (int64_t g = 0; g < node.groups; ++g) {
      const auto each = [&](const auto& f) {
        for (int64_t p = 0; p < from.pixels(); ++p) {
          for (int64_t c = 0; c < width; ++c) f(p * channels + g * width + c);
        }
      };
      double mean = 0, variance = 0;
      const double count = from.pixels() * width;
      each([&](int64_t i) { mean += rows[i] / count; });
      each([&](int64_t i) {
        variance += (rows[i] - mean) * (rows[i] - mean) / count;
      });
      each([&](int64_t i) {
        out[i] = (rows[i] - mean) / std::sqrt(variance + node.epsilon);
      });
    }
  }
  return out;
}

// The map of a node [pixels, channels] in one frame, by the definitions, given
// those of the nodes before it. Takes the node's weights from `next` on.
std::vector<float> MapOf(const Graph& graph, const Node& node,
                         const std::vector<std::vector<float>>& maps,
                         const float* frame, Weights::const_iterator* next) {
  const bool multiplies = node.kind == Node::kConv || node.kind == Node::kDense;
  const float* kernel = multiplies ? (*next)++->data() : nullptr;
  const float* bias = node.use_bias ? (*next)++->data() : nullptr;
  std::vector<float> turned;
  if (node.transposed) {
    const int64_t taps = node.taps(), depth = graph.input(node).channels;
    for (int64_t t = taps - 1; t >= 0; --t) {
      for (int64_t c = 0; c < depth; ++c) {
        for (int64_t f = 0; f < node.channels; ++f) {
          turned.push_back(kernel[(t * node.channels + f) * depth + c]);
        }
      }
    }
    kernel = turned.data();
  }
  std::vector<float> rows;
  if (node.kind == Node::kFrames) {
    rows.assign(frame, frame + node.pixels() * node.channels);
  } else if (node.kind == Node::kWeights) {
    rows = *(*next)++;
  } else if (node.whole()) {
    rows = OfWhole(graph, node, maps[node.inputs[0]], kernel, bias);
  } else {
    const auto patches = AllPatches(graph, node, 1);
    for (int64_t at = 0; at < node.pixels(); ++at) {
      const auto row = AtPosition(
          graph, node, maps, patches.data() + at * node.taps(), kernel, bias);
      rows.insert(rows.end(), row.begin(), row.end());
    }
  }
  for (const RowFunction& f : node.functions) {
    Apply(f, node.channels, next, &rows);
  }
  return rows;
}

// The outputs for one frame [pixels, channels], behind each other, by the
// definitions.
std::vector<float> Reference(const Graph& graph, const Weights& weights,
                             const float* frame) {
  auto next = weights.begin();
  std::vector<std::vector<float>> maps;
  for (const Node& node : graph.nodes) {
    maps.push_back(MapOf(graph, node, maps, frame, &next));
  }
  std::vector<float> outputs;
  for (const int32_t i : graph.outputs) {
    outputs.insert(outputs.end(), maps[i].begin(), maps[i].end());
  }
  return outputs;
}

// Steps, and puts the outputs behind each other: [streams, values]. What the
// outputs held before is there again if `kept` is given.
std::vector<float> Step(Network* network, const Graph& graph,
                        const uint8_t* frames, int64_t streams,
                        const ParallelFor& parallel,
                        std::vector<std::vector<float>>* kept = nullptr) {
  std::vector<std::vector<float>> outputs;
  std::vector<float*> pointers;
  const bool keep =
      kept != nullptr && !kept->empty() && kept->size() == graph.outputs.size();
  for (const int32_t i : graph.outputs) {
    const Node& node = graph.nodes[i];
    outputs.emplace_back(streams * node.pixels() * node.channels, 77.f);
  }
  const bool same = keep && (*kept)[0].size() == outputs[0].size();
  if (same) outputs = *kept;
  for (auto& output : outputs) pointers.push_back(output.data());
  network->Step(frames, streams, parallel, pointers.data(), same);
  if (kept != nullptr) *kept = outputs;
  std::vector<float> all;
  for (int64_t n = 0; n < streams; ++n) {
    for (const auto& output : outputs) {
      const int64_t size = output.size() / streams;
      all.insert(all.end(), output.begin() + n * size,
                 output.begin() + (n + 1) * size);
    }
  }
  return all;
}

bool Near(float got, float want, float apart = 0) {
  if (std::isnan(want) || std::isinf(want)) {
    return std::isnan(got) || std::isinf(got);
  }
  return std::fabs(got - want) <= apart + 1e-3 * (1 + std::fabs(want));
}

using Choice = Network::Choice;

Network::Options Options(Choice reuse, int64_t max_rows = 20000,
                         uint64_t hash_mask = ~uint64_t{},
                         int64_t tile_bytes = 1 << 16) {
  Network::Options options;
  options.reuse = reuse;
  options.max_rows = max_rows;
  options.hash_mask = hash_mask;
  options.tile_bytes = tile_bytes;
  return options;
}

// Of a network whose tables share their bytes: that they keep to these. Returns
// whether one had more rows than its part.
bool CheckBytes(const Network& network, const Graph& graph) {
  const Structure::Bounds& bounds = network.structure().bounds();
  bool more = false;
  int64_t bytes = 0;
  for (size_t m = 0; m < graph.nodes.size(); ++m) {
    const InternTable* table = network.structure().maps()[m].table.get();
    if (table == nullptr) continue;
    bytes += table->taken() * bounds.row_bytes[m];
    more |= table->size() > bounds.parts[m];
  }
  CHECK(bytes <= bounds.bytes);
  return more;
}

void TestNetworks(int cases) {
  Random random(3);
  int64_t with_more = 0;
  for (int i = 0; i < cases; ++i) {
    const Graph graph = RandomGraph(&random, Kinds::kAll).WithOutputs();
    Weights weights = RandomWeights(graph, &random);
    std::vector<std::unique_ptr<Network>> networks;
    const auto add = [&](const Network::Options& options) {
      networks.push_back(std::make_unique<Network>(graph, options));
      networks.back()->SetWeights(Pointers(weights), true);
    };
    for (const uint64_t mask : kHashMasks) {
      add(Options(Choice::kContent, 20000, mask));
    }
    add(Options(Choice::kTemporal));
    add(Options(Choice::kAuto));
    for (const int64_t max_rows : {1, 5, 60}) {
      add(Options(Choice::kAuto, max_rows));
    }
    add(Options(Choice::kContent, 20000, ~uint64_t{}, 0));
    // Bounded together, from next to nothing on.
    for (const int64_t bytes : {1, 5000, 100000}) {
      Network::Options options = Options(Choice::kAuto, 0);
      options.table_bytes = bytes;
      add(options);
    }
    std::vector<std::vector<std::vector<float>>> kept(networks.size());
    Video video(graph.frame, random.Int(1, 5), i);
    Weights moved;
    for (int step = 0; step < 9; ++step, video.Next()) {
      const int64_t streams = video.streams();
      const int64_t event = random.Int(0, 7);
      if (event == 0) {
        weights = RandomWeights(graph, &random);
        for (auto& n : networks) n->SetWeights(Pointers(weights), true);
      } else if (event == 1) {
        moved = weights;
        weights.swap(moved);
        for (auto& n : networks) n->SetWeights(Pointers(weights), false);
      } else if (event == 2) {
        for (auto& n : networks) n->Reset(random.Int(0, 5));
      } else if (event == 3) {
        networks[random.Int(0, networks.size() - 1)]->Reset();
      }
      Network fresh(graph, Options(random.Pick({Choice::kContent, Choice::kAuto,
                                                Choice::kTemporal})));
      fresh.SetWeights(Pointers(weights), true);
      const int64_t size = graph.frame.pixels() * graph.frame.channels;
      const int64_t bytes = size * (graph.frame.bytes ? 1 : 4);
      std::vector<float> want;
      for (int64_t n = 0; n < streams; ++n) {
        // Each stream alone.
        fresh.Reset();
        const auto alone =
            Step(&fresh, graph, video.data() + n * bytes, 1, Serial);
        const auto plain =
            Reference(graph, weights, video.values().data() + n * size);
        CHECK(plain.size() == alone.size());
        for (size_t u = 0; u < plain.size(); ++u) {
          CHECK(Near(alone[u], plain[u]));
        }
        want.insert(want.end(), alone.begin(), alone.end());
      }
      for (size_t k = 0; k < networks.size(); ++k) {
        const auto got =
            Step(networks[k].get(), graph, video.data(), streams,
                 (step + k) % 3 == 0 ? Threads(k) : ParallelFor(Serial),
                 k % 2 == 0 ? &kept[k] : nullptr);
        CHECK(SameBits(got, want));
        const std::vector<int64_t> rows = networks[k]->Rows();
        for (size_t m = 0; m < rows.size(); ++m) {
          CHECK(networks[k]->reuse(m) == Reuse::kTemporal ||
                rows[m] <= networks[k]->max_rows()[m]);
        }
        if (networks[k]->structure().bounds().bytes > 0) {
          with_more += CheckBytes(*networks[k], graph) ? 1 : 0;
        }
        for (const auto& map : networks[k]->stats().maps) {
          CHECK(0 <= map.changed && map.changed <= map.positions);
          CHECK(map.new_rows <= map.changed);
          CHECK(map.multiply_adds <= map.dense_multiply_adds);
        }
      }
    }
  }
  CHECK(with_more > 0);
}

// Rows [pixels, channels] of a node in one frame, that were handed on, beside
// what they would be without its threshold, and those of the frame before, if
// there was one.
void CheckHandedOn(const Node& node, const std::vector<float>& rows,
                   const std::vector<float>& exact,
                   const std::vector<float>& before) {
  for (size_t i = 0; i < rows.size(); i += node.channels) {
    bool far = false, close = true, moved = before.empty(), is_exact = true;
    for (int64_t c = 0; c < node.channels; ++c) {
      CHECK(Near(rows[i + c], exact[i + c], node.threshold));
      is_exact &= Near(rows[i + c], exact[i + c]);
      if (before.empty()) continue;
      far |= !Near(before[i + c], exact[i + c], node.threshold);
      const double apart = std::fabs(before[i + c] - exact[i + c]);
      close &= apart + 1e-3 * (1 + std::fabs(exact[i + c])) < node.threshold;
      moved |= !SameBits(&rows[i + c], &before[i + c], 1);
    }
    // Either kept, bit for bit, or as it is; and kept unless it went too far.
    CHECK(is_exact || !moved);
    CHECK(before.empty() || !close || !moved);
    CHECK(!far || is_exact);
    CHECK(node.threshold > 0 || is_exact);
  }
}

// Of every node, what is handed on is off by no more than the threshold from
// what follows from what was handed on to it, whatever was before.
void TestThresholds(int cases) {
  Random random(8);
  for (int i = 0; i < cases; ++i) {
    Graph graph = RandomGraph(&random, Kinds::kAll).WithOutputs();
    graph.outputs.clear();
    for (size_t k = 0; k < graph.nodes.size(); ++k) {
      Node& node = graph.nodes[k];
      if (node.kind == Node::kWeights) continue;
      graph.outputs.push_back(static_cast<int32_t>(k));
      if (random.Chance(60)) node.threshold = random.Pick({0.1f, 0.5f, 1.5f});
    }
    graph.nodes.back().threshold = 0.5f;
    Weights weights = RandomWeights(graph, &random);
    Network one(graph, Options(Choice::kAuto));
    Network other(graph, Options(Choice::kTemporal));
    for (Network* n : {&one, &other}) n->SetWeights(Pointers(weights), true);
    Video video(graph.frame, random.Int(1, 3), i);
    std::vector<std::vector<float>> kept;
    // By stream and node; none if nothing is known.
    std::vector<std::vector<std::vector<float>>> before;
    for (int step = 0; step < 12; ++step, video.Next()) {
      const int64_t streams = video.streams(), event = random.Int(0, 9);
      const std::vector<std::vector<float>> unknown(graph.nodes.size());
      before.resize(streams, unknown);
      if (event == 0) {
        weights = RandomWeights(graph, &random);
        for (Network* n : {&one, &other}) {
          n->SetWeights(Pointers(weights), true);
        }
        before.assign(streams, unknown);
      } else if (event == 1) {
        const int64_t stream = random.Int(0, streams - 1);
        for (Network* n : {&one, &other}) n->Reset(stream);
        before[stream] = unknown;
      }
      const auto got = Step(&one, graph, video.data(), streams, Serial, &kept);
      CHECK(SameBits(Step(&other, graph, video.data(), streams, Threads(step)),
                     got));
      const int64_t size = graph.frame.pixels() * graph.frame.channels;
      auto value = got.begin();
      for (int64_t n = 0; n < streams; ++n) {
        auto next = weights.cbegin();
        std::vector<std::vector<float>> maps;
        for (const Node& node : graph.nodes) {
          auto exact =
              MapOf(graph, node, maps, video.values().data() + n * size, &next);
          if (node.kind == Node::kWeights) {
            maps.push_back(exact);
            continue;
          }
          maps.emplace_back(value, value + exact.size());
          value += exact.size();
          // Of frames, the threshold is of what comes in.
          if (node.kind == Node::kFrames && !node.functions.empty()) continue;
          CheckHandedOn(node, maps.back(), exact, before[n][maps.size() - 1]);
        }
        before[n] = maps;
      }
      CHECK(one.reuse(0) == Reuse::kTemporal && one.stats().clears == 0);
    }
  }
}

// What the hash is changes nothing but time.
void TestCollisionsChangeNothing() {
  Random random(4);
  for (int i = 0; i < 15; ++i) {
    const Graph graph = RandomGraph(&random, Kinds::kAll).WithOutputs();
    const Weights weights = RandomWeights(graph, &random);
    std::vector<NetworkStats> all;
    for (const uint64_t mask : kHashMasks) {
      Network network(graph, Options(Choice::kAuto, 300, mask));
      network.SetWeights(Pointers(weights), true);
      Video video(graph.frame, 2, i);
      for (int step = 0; step < 10; ++step, video.Next()) {
        Step(&network, graph, video.data(), video.streams(), Serial);
      }
      all.push_back(network.stats());
    }
    for (const NetworkStats& stats : all) {
      CHECK(stats.clears == all[0].clears);
      CHECK(stats.switches == all[0].switches);
      for (size_t m = 0; m < stats.maps.size(); ++m) {
        CHECK(stats.maps[m].changed == all[0].maps[m].changed);
        CHECK(stats.maps[m].new_rows == all[0].maps[m].new_rows);
      }
    }
  }
}

// Convolutions of 3 x 3, one after the other, and dense layers.
Graph Chain(int64_t height, int64_t width, int64_t channels, bool bytes,
            const std::vector<int64_t>& filters,
            const std::vector<int64_t>& units) {
  Graph graph;
  graph.frame.height = height;
  graph.frame.width = width;
  graph.frame.channels = channels;
  graph.frame.bytes = bytes;
  Node node;
  node.height = height;
  node.width = width;
  node.channels = channels;
  graph.Add(node);
  const auto add = [&](Node::Kind kind, int64_t size) {
    node = Node();
    node.kind = kind;
    node.inputs = {static_cast<int32_t>(graph.nodes.size()) - 1};
    const Node& from = graph.input(node);
    node.window.height = from.height;
    node.window.width = from.width;
    if (from.pixels() > 1) {
      node.window.kernel_height = node.window.kernel_width = 3;
    }
    Pad(true, &node.window);
    node.height = kind == Node::kDense ? 1 : from.height;
    node.width = kind == Node::kDense ? 1 : from.width;
    node.channels = size;
    node.use_bias = true;
    if (kind == Node::kConv && from.pixels() > 1) {
      node.functions.emplace_back();
      node.functions.back().op.activation = Named("relu");
    }
    graph.Add(node);
  };
  for (const int64_t size : filters) add(Node::kConv, size);
  for (const int64_t size : units) {
    add(graph.nodes.back().per_frame ? Node::kConv : Node::kDense, size);
  }
  graph.outputs = {static_cast<int32_t>(graph.nodes.size()) - 1};
  return graph;
}

// Large enough that every parallel loop is cut: for the thread sanitizer too.
void TestThreads() {
  Random random(5);
  const Graph graph = Chain(24, 24, 3, false, {20, 24}, {33, 5});
  const Weights weights = RandomWeights(graph, &random);
  for (const Choice reuse : {Choice::kContent, Choice::kTemporal}) {
    Network one(graph, Options(reuse)), many(graph, Options(reuse));
    one.SetWeights(Pointers(weights), true);
    many.SetWeights(Pointers(weights), true);
    Video video(graph.frame, 3, 1);
    for (int step = 0; step < 8; ++step, video.Next()) {
      const auto want =
          Step(&one, graph, video.data(), video.streams(), Serial);
      const auto got =
          Step(&many, graph, video.data(), video.streams(), Threads(step));
      CHECK(SameBits(got, want));
    }
  }
}

// Noise makes the maps of a network go over to temporal reuse; after a pause it
// tries content reuse again, and stays with it if the noise is over.
void TestAdaptation() {
  Random random(6);
  const Graph graph = Chain(5, 5, 1, false, {4}, {3});
  const Weights weights = RandomWeights(graph, &random);
  Network network(graph, Options(Choice::kAuto));
  Network forced(graph, Options(Choice::kContent));
  Network temporal(graph, Options(Choice::kTemporal));
  for (Network* n : {&network, &forced, &temporal}) {
    n->SetWeights(Pointers(weights), true);
  }
  std::vector<std::vector<float>> frames;
  const auto until = [&](Reuse reuse, int64_t steps, bool noise) {
    for (int64_t step = 0; step < steps; ++step) {
      if (noise || frames.size() < 2) frames.push_back(random.Floats(25));
      const auto* frame = reinterpret_cast<const uint8_t*>(
          frames[frames.size() - 1 - step % 2].data());
      const auto want = Step(&temporal, graph, frame, 1, Serial);
      CHECK(SameBits(Step(&network, graph, frame, 1, Serial), want));
      CHECK(SameBits(Step(&forced, graph, frame, 1, Serial), want));
      if (network.reuse(1) == reuse) return true;
    }
    return false;
  };
  CHECK(until(Reuse::kTemporal, 1000, true));
  CHECK(network.stats().switches == 1);
  CHECK(until(Reuse::kContent, 10000, false));
  CHECK(network.stats().switches == 2);
  CHECK(!until(Reuse::kTemporal, 500, false));
  CHECK(network.stats().switches == 2);
  CHECK(forced.reuse(1) == Reuse::kContent && forced.stats().switches == 0);
  network.Reset();
  CHECK(network.stats().switches == 0);
  CHECK(network.reuse(1) == Reuse::kContent);
}

// Calls f, whose allocation number `fail_at` fails. Whether one did.
template <typename F>
bool OutOfMemory(int64_t fail_at, const F& f) {
  bool failed = false;
  allocations_left = fail_at;
  try {
    f();
  } catch (const std::bad_alloc&) {
    failed = true;
  }
  allocations_left = -1;
  return failed;
}

// A step that fails at any allocation leaves nothing wrong behind.
void TestStepsOutOfMemory() {
  Random random(7);
  int64_t failures = 0;
  for (int i = 0; i < 8; ++i) {
    const Graph graph = RandomGraph(&random, Kinds::kAll).WithOutputs();
    const Weights weights = RandomWeights(graph, &random);
    const Choice reuse = i % 2 == 0 ? Choice::kAuto : Choice::kTemporal;
    const int64_t max_rows = i % 4 == 0 ? 20 : 20000;
    // Right after it was made, or with much to lose.
    const int64_t warm = i % 3 == 0 ? 0 : 4;
    for (int64_t fail_at = 0;; ++fail_at) {
      Network network(graph, Options(reuse, max_rows));
      Network fresh(graph, Options(reuse));
      network.SetWeights(Pointers(weights), true);
      fresh.SetWeights(Pointers(weights), true);
      Video video(graph.frame, 2, i);
      const bool record = i % 2 == 0;
      if (record) network.Record();
      for (int64_t step = 0; step < warm; ++step, video.Next()) {
        Step(&network, graph, video.data(), video.streams(), Serial);
      }
      const uint8_t* frames = video.data();
      const ParallelFor parallel = fail_at % 2 == 0 ? Serial : Threads(i);
      std::vector<std::vector<float>> outputs;
      std::vector<float*> pointers;
      std::vector<float> got;
      for (const int32_t k : graph.outputs) {
        const Node& node = graph.nodes[k];
        outputs.emplace_back(video.streams() * node.pixels() * node.channels);
        pointers.push_back(outputs.back().data());
      }
      const bool failed = OutOfMemory(fail_at, [&] {
        network.Step(frames, video.streams(), parallel, pointers.data());
      });
      failures += failed;
      // Half a step is not recorded.
      if (failed && record) CHECK(network.TakeRecording().empty());
      for (int step = 0; step < 3; ++step, video.Next()) {
        got = Step(&network, graph, video.data(), video.streams(), Serial);
        fresh.Reset();
        CHECK(SameBits(
            got, Step(&fresh, graph, video.data(), video.streams(), Serial)));
      }
      if (!failed) break;
    }
  }
  CHECK(failures > 100);
}

// Whatever is asked of a network fails at times, and is asked again.
void TestAnythingOutOfMemory() {
  Random random(8);
  for (int i = 0; i < 12; ++i) {
    const Graph graph = RandomGraph(&random, Kinds::kAll).WithOutputs();
    Weights weights = RandomWeights(graph, &random);
    std::unique_ptr<Network> network;
    const Choice reuse = i % 2 == 0 ? Choice::kAuto : Choice::kTemporal;
    const auto until_done = [&](const auto& f) {
      // Late enough, at times, for any of them.
      while (OutOfMemory(random.Int(0, 2000), f)) continue;
    };
    until_done([&] {
      network = std::make_unique<Network>(graph, Options(reuse, 300));
    });
    Video video(graph.frame, 2, i);
    bool weights_known = false;
    for (int round = 0; round < 40; ++round, video.Next()) {
      const uint8_t* frames = video.data();
      switch (random.Int(0, 6)) {
        case 0:
          OutOfMemory(random.Int(0, 9), [&] { network->Reset(); });
          break;
        case 1:
          network->Reset(random.Int(0, 3));
          break;
        case 2:
          weights = RandomWeights(graph, &random);
          weights_known = false;
          break;
        case 3:
          weights_known = false;
          OutOfMemory(random.Int(0, 9), [&] { network->Release(); });
          break;
        case 4:
          network->Record();
          break;
        case 5:
          OutOfMemory(random.Int(0, 30), [&] {
            for (EpisodeRecorder& recorder : network->TakeRecording()) {
              std::vector<Pair> pairs;
              std::vector<int32_t> contents, order;
              std::vector<Run> runs;
              recorder.Finish(&pairs, &contents, &runs, &order);
            }
          });
          break;
      }
      const std::vector<const float*> pointers = Pointers(weights);
      if (!weights_known) {
        until_done([&] { network->SetWeights(pointers, true); });
        weights_known = true;
      }
      std::vector<float> got;
      until_done([&] {
        got = Step(network.get(), graph, frames, video.streams(),
                   round % 2 == 0 ? Serial : Threads(round));
      });
      Network fresh(graph, Options(reuse));
      fresh.SetWeights(pointers, true);
      CHECK(
          SameBits(got, Step(&fresh, graph, frames, video.streams(), Serial)));
    }
  }
}

int Main() {
  TestNetworks(80);
  TestThresholds(60);
  TestCollisionsChangeNothing();
  TestThreads();
  TestAdaptation();
  TestStepsOutOfMemory();
  TestAnythingOutOfMemory();
  return Report();
}

}  // namespace
}  // namespace reuse_tf

// These fail when they are told to. Not inlined, as compilers then take them
// for pairs that do not match.
#define REPLACED __attribute__((noinline))
REPLACED void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  if (!reuse_tf::never_fails && reuse_tf::allocations_left >= 0 &&
      reuse_tf::allocations_left-- <= 0) {
    return nullptr;
  }
  return std::malloc(std::max<std::size_t>(1, size));
}
REPLACED void* operator new(std::size_t size) {
  void* data = operator new(size, std::nothrow);
  if (data == nullptr) throw std::bad_alloc();
  return data;
}
REPLACED void operator delete(void* data) noexcept { std::free(data); }
REPLACED void operator delete(void* data, std::size_t) noexcept {
  std::free(data);
}

int main() { return reuse_tf::Main(); }
