#include "custom_ops/kernels/graph/take.h"

#include <string>
#include <utility>
#include <vector>

#include "custom_ops/kernels/graph/tiles.h"

namespace reuse_tf {
namespace {

// Some of the numbers [0, size): first they are marked, each with a taken frame
// that shows what it stands for, then they are numbered anew.
class Kept {
 public:
  explicit Kept(int64_t size) : numbers_(size, -1) {}
  int64_t size() const { return numbers_.size(); }
  bool valid(int64_t i) const { return i >= 0 && i < size(); }
  bool has(int64_t i) const { return numbers_[i] >= 0; }
  void Mark(int64_t i, int32_t frame) { numbers_[i] = frame; }
  // Of a number that is marked.
  int32_t frame(int64_t i) const { return numbers_[i]; }
  // Returns how many there are.
  int64_t Number() {
    int32_t next = 0;
    for (int32_t& number : numbers_) {
      if (number >= 0) number = next++;
    }
    return next;
  }
  int32_t operator[](int64_t i) const { return numbers_[i]; }

  // The same for a list, in which -1 stands for nothing. Mark returns whether
  // all others are valid.
  bool Mark(const int32_t* list, int64_t count, int32_t frame) {
    for (int64_t i = 0; i < count; ++i) {
      if (list[i] == -1) continue;
      if (!valid(list[i])) return false;
      numbers_[list[i]] = frame;
    }
    return true;
  }
  void Renumber(const int32_t* list, int64_t count, int32_t* out) const {
    for (int64_t i = 0; i < count; ++i) {
      out[i] = list[i] < 0 ? -1 : numbers_[list[i]];
    }
  }

 private:
  std::vector<int32_t> numbers_;  // -1 if not kept
};

class Taker {
 public:
  Taker(const Graph& graph, const VideoView& video, const View<int32_t>& frames,
        TakenVideo* taken)
      : graph_(graph),
        video_(video),
        frames_(frames),
        taken_(taken),
        state_of_(graph.nodes.size(), -1) {
    size_t patches = 0;
    for (const Node& node : graph.nodes) {
      // Rows that are numbered anew are those of the pixels and of patches.
      int64_t rows = 0;
      if (node.kind == Node::kFrames) {
        rows = video.pixels;
      } else if (node.has_patches()) {
        rows = video.patches[patches++].count / node.taps();
      }
      rows_.emplace_back(rows);
    }
    const std::vector<int32_t> states = graph.States();
    for (size_t k = 0; k < states.size(); ++k) {
      state_of_[states[k]] = static_cast<int32_t>(k);
    }
  }

  std::string Take() {
    for (auto step : {&Taker::TakeOrder, &Taker::TakeStates, &Taker::TakeShown,
                      &Taker::TakePatches}) {
      std::string error = (this->*step)();
      if (!error.empty()) return error;
    }
    return "";
  }

 private:
  std::string TakeOrder() {
    const int64_t count = video_.order.count;
    Kept numbers(count);
    for (int64_t t = 0; t < count; ++t) {
      if (!numbers.valid(video_.order.data[t])) return "order";
    }
    for (int64_t i = 0; i < frames_.count; ++i) {
      numbers.Mark(video_.order.data[frames_.data[i]], static_cast<int32_t>(i));
    }
    for (int64_t i = 0; i < count; ++i) {
      if (numbers.has(i)) numbered_.push_back(numbers.frame(i));
    }
    numbers.Number();
    for (int64_t i = 0; i < frames_.count; ++i) {
      taken_->order.push_back(numbers[video_.order.data[frames_.data[i]]]);
    }
    before_.push_back(0);
    for (int64_t i = 0; i < count; ++i) {
      before_.push_back(before_.back() + numbers.has(i));
    }
    return "";
  }

  // Equal states stay equal: that of the first frame that is taken.
  std::string TakeStates() {
    for (const View<int32_t>& state : video_.states) {
      if (state.count != video_.order.count) return "states";
      std::vector<int32_t> first(state.count, -1), now;
      for (int64_t i = 0; i < frames_.count; ++i) {
        const int32_t old = state.data[frames_.data[i]];
        if (old < 0 || old >= state.count) return "states";
        if (first[old] < 0) first[old] = static_cast<int32_t>(i);
        now.push_back(first[old]);
      }
      first_.push_back(std::move(first));
      taken_->states.push_back(std::move(now));
    }
    return "";
  }

  std::string TakeShown() {
    constexpr int64_t kPositions = Tiles::kPositions;
    const std::vector<int32_t> nodes = graph_.Shown();
    taken_->shown.resize(nodes.size());
    for (size_t k = 0; k < nodes.size(); ++k) {
      const VideoView::Shown& from = video_.shown[k];
      TakenVideo::Shown& to = taken_->shown[k];
      Kept contents(from.contents.count / kPositions), pairs(from.pairs.count);
      for (int64_t i = 0; i < from.runs.count; ++i) {
        Run run = from.runs.data[i];
        if (!contents.valid(run.content) || run.begin < 0 ||
            run.begin > run.end || run.end > video_.order.count) {
          return "runs";
        }
        run.begin = before_[run.begin];
        run.end = before_[run.end];
        if (run.begin == run.end) continue;
        contents.Mark(run.content, numbered_[run.begin]);
        to.runs.push_back(run);
      }
      for (int64_t i = 0; i < contents.size() * kPositions; ++i) {
        if (!contents.has(i / kPositions)) continue;
        const int32_t pair = from.contents.data[i];
        if (pair != -1 && !pairs.valid(pair)) return "contents";
        if (pair >= 0) pairs.Mark(pair, contents.frame(i / kPositions));
        to.contents.push_back(pair);
      }
      for (int64_t i = 0; i < pairs.size(); ++i) {
        if (!pairs.has(i)) continue;
        to.pairs.push_back(from.pairs.data[i]);
        if (!Mark(nodes[k], to.pairs.back().row, pairs.frame(i))) {
          return "pairs";
        }
      }
      contents.Number();
      pairs.Number();
      for (Run& run : to.runs) run.content = contents[run.content];
      for (int32_t& pair : to.contents) pair = pair < 0 ? -1 : pairs[pair];
    }
    return "";
  }

  std::string TakePatches() {
    // From the last node to the first: which rows are needed.
    size_t k = video_.patches.size();
    for (size_t n = graph_.nodes.size(); n-- > 0;) {
      const Node& node = graph_.nodes[n];
      if (!node.has_patches()) continue;
      const int32_t* patch = video_.patches[--k].data;
      const int64_t taps = node.taps();
      Kept* const source = OnlySource(node);
      for (int64_t i = 0; i < rows_[n].size(); ++i, patch += taps) {
        if (!rows_[n].has(i)) continue;
        const int32_t frame = rows_[n].frame(i);
        bool valid = true;
        if (source != nullptr) {
          valid = source->Mark(patch, taps, frame);
        } else {
          for (int64_t t = 0; t < taps; ++t) {
            valid &= patch[t] == -1 || Mark(Source(node, t), patch[t], frame);
          }
        }
        if (!valid) return "patches";
      }
    }
    std::vector<int64_t> counts;
    for (Kept& rows : rows_) counts.push_back(rows.Number());
    for (int64_t i = 0; i < rows_[0].size(); ++i) {
      if (rows_[0].has(i)) taken_->pixels.push_back(static_cast<int32_t>(i));
    }
    for (size_t n = 0; n < graph_.nodes.size(); ++n) {
      const Node& node = graph_.nodes[n];
      if (!node.has_patches()) continue;
      const int32_t* patch = video_.patches[k++].data;
      const int64_t taps = node.taps();
      const Kept* const source = OnlySource(node);
      taken_->patches.emplace_back(counts[n] * taps);
      int32_t* to = taken_->patches.back().data();
      for (int64_t i = 0; i < rows_[n].size(); ++i, patch += taps) {
        if (!rows_[n].has(i)) continue;
        if (source != nullptr) {
          source->Renumber(patch, taps, to);
        } else {
          for (int64_t t = 0; t < taps; ++t) {
            to[t] = patch[t] < 0 ? -1 : NewRow(Source(node, t), patch[t]);
          }
        }
        to += taps;
      }
    }
    const std::vector<int32_t> shown = graph_.Shown();
    for (size_t i = 0; i < shown.size(); ++i) {
      for (Pair& pair : taken_->shown[i].pairs) {
        pair.row = NewRow(shown[i], pair.row);
      }
    }
    return "";
  }

  static int32_t Source(const Node& node, int64_t tap) {
    return node.inputs[node.kind == Node::kJoin ? tap : 0];
  }
  // The rows that all taps of a node are of, as they mostly are; null if taps
  // differ, or their rows are not numbered anew.
  Kept* OnlySource(const Node& node) {
    const Node& source = graph_.input(node);
    if (node.kind == Node::kJoin || source.kind == Node::kWeights ||
        source.per_frame) {
      return nullptr;
    }
    return &rows_[node.inputs[0]];
  }
  // Whether the node can have such a row; it is needed then, by a taken frame.
  bool Mark(int32_t node, int32_t row, int32_t frame) {
    const int64_t pixels = graph_.nodes[node].pixels();
    if (graph_.nodes[node].kind == Node::kWeights) {
      return row >= 0 && row < pixels;
    }
    if (graph_.nodes[node].per_frame) {
      const int32_t k = state_of_[node];
      const int64_t state = row / pixels;
      if (row < 0 || state >= video_.order.count) return false;
      // What was seen in an earlier frame is shown as that frame's. The values
      // are the same.
      if (first_[k][state] < 0) first_[k][state] = taken_->states[k][frame];
      return true;
    }
    if (!rows_[node].valid(row)) return false;
    rows_[node].Mark(row, frame);
    return true;
  }
  int32_t NewRow(int32_t node, int32_t row) const {
    if (graph_.nodes[node].kind == Node::kWeights) return row;
    if (!graph_.nodes[node].per_frame) return rows_[node][row];
    const int32_t pixels = static_cast<int32_t>(graph_.nodes[node].pixels());
    return first_[state_of_[node]][row / pixels] * pixels + row % pixels;
  }

  const Graph& graph_;
  const VideoView& video_;
  const View<int32_t>& frames_;
  TakenVideo* const taken_;
  // By number, how many before it are taken; by new number, a taken frame.
  std::vector<int32_t> before_, numbered_;
  std::vector<int32_t> state_of_;            // by node, its number of States
  std::vector<std::vector<int32_t>> first_;  // by it and old state, the new one
  std::vector<Kept> rows_;                   // by node
};

}  // namespace

std::string TakeFrames(const Graph& graph, const VideoView& video,
                       const View<int32_t>& frames, TakenVideo* taken) {
  return Taker(graph, video, frames, taken).Take();
}

}  // namespace reuse_tf
