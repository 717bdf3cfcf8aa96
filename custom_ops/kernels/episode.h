// The structure of a video: what the differentiable path needs to know of its
// frames, however often and with whatever weights it is then run.
#ifndef REUSE_TF_KERNELS_EPISODE_H_
#define REUSE_TF_KERNELS_EPISODE_H_

#include <algorithm>
#include <cstdint>
#include <vector>

#include "custom_ops/kernels/intern.h"
#include "custom_ops/kernels/structure.h"

namespace reuse_tf {

// That a position of the last map shows a row.
struct Pair {
  int32_t position, row;
};

// That a pair holds from frame `begin` up to, not including, frame `end`.
struct Run {
  int32_t pair, begin, end;
};

// Collects the runs of the last map of a structure of one stream under content
// reuse, step by step.
class EpisodeRecorder {
 public:
  // For so many positions, and at most so many frames.
  EpisodeRecorder(int64_t positions, int64_t frames)
      : open_(positions, Open{-1, 0}),
        pairs_(2, std::min<int64_t>(positions * frames, INT32_MAX)) {}

  // Records the step that the structure just made.
  void Add(const Structure& structure) {
    const int64_t last = structure.maps().size() - 1;
    for (const int32_t at : structure.maps()[last].positions) {
      Close(at);
      open_[at] = {structure.id(last, at), frames_};
    }
    ++frames_;
  }

  // All that was recorded. `pairs` are distinct and in the order of their
  // positions, so that what belongs to a position is read once; `runs` are in
  // the order of their pairs. Both orders are made by counting.
  void Finish(std::vector<Pair>* pairs, std::vector<Run>* runs) {
    const int64_t positions = open_.size();
    for (int64_t at = 0; at < positions; ++at) Close(at);
    const int64_t count = pairs_.size();
    std::vector<int64_t> next(positions + 1, 0);
    for (int64_t i = 0; i < count; ++i) ++next[pairs_.key(i)[0] + 1];
    for (int64_t p = 0; p < positions; ++p) next[p + 1] += next[p];
    std::vector<int32_t> place(count);
    pairs->resize(count);
    for (int64_t i = 0; i < count; ++i) {
      place[i] = next[pairs_.key(i)[0]]++;
      (*pairs)[place[i]] = {pairs_.key(i)[0], pairs_.key(i)[1]};
    }
    next.assign(count + 1, 0);
    for (const Run& run : runs_) ++next[place[run.pair] + 1];
    for (int64_t i = 0; i < count; ++i) next[i + 1] += next[i];
    runs->resize(runs_.size());
    for (const Run& run : runs_) {
      (*runs)[next[place[run.pair]]++] = {place[run.pair], run.begin, run.end};
    }
  }

 private:
  struct Open {
    int32_t row;  // -1: nothing yet
    int32_t begin;
  };

  void Close(int64_t at) {
    const Open& open = open_[at];
    if (open.row < 0) return;
    const int32_t key[2] = {static_cast<int32_t>(at), open.row};
    int32_t pair = 0;
    pairs_.Intern(key, 1, &pair);
    runs_.push_back({pair, open.begin, frames_});
  }

  int32_t frames_ = 0;
  std::vector<Open> open_;  // by position
  InternTable pairs_;
  std::vector<Run> runs_;
};

}  // namespace reuse_tf

#endif  // REUSE_TF_KERNELS_EPISODE_H_
