"""PPO, from advantages and losses to the updates of a policy and its critic.

The method is that of Schulman et al. (2017), "Proximal Policy Optimization
Algorithms", [arXiv 1707.06347](https://arxiv.org/abs/1707.06347). The functions
are pure. Losses are means over a minibatch, and work in a `tf.function` too.
`PPO` plays with a policy and updates it by them.
"""

import concurrent.futures
import dataclasses
import time

import numpy as np
import tensorflow as tf

from reuse_tf.learning import environments, workers
from reuse_tf.learning.learner import Learner
from reuse_tf.learning.reinforce import (
    entropy_bonus,
    gradients_of,
    log_probabilities,
)
from reuse_tf.policies import Sampler

# What Adam and RMSprop add to denominators: detail 3 of Huang et al. (2022).
_EPSILON = 1e-5
# What is logged of minibatches, in the order of `PPO._losses`.
_SCALARS = (
    *("loss", "policy_loss", "value_loss", "entropy"),
    *("clip_fraction", "approximate_kl"),
)


def generalized_advantages(
    rewards, values, next_values, continues, discount, lambda_
):
    """Computes generalized advantage estimates, and targets for the values.

        delta[t] = rewards[t] + discount * next_values[t] - values[t]
        A[t] = delta[t] + discount * lambda_ * continues[t] * A[t + 1],
            A[T] = 0
        targets[t] = A[t] + values[t]

    Equation 16 of Schulman et al. (2015),
    [arXiv 1506.02438](https://arxiv.org/abs/1506.02438), with sums that end
    where an episode, or what was played of it, ends. What comes after that is
    in `next_values` alone:

        after step t          next_values[t]                     continues[t]
        the episode goes on   values[t + 1]                      True
        it was terminated     0                                  False
        it was truncated      that of its final observation      False
        t = T - 1, it goes on that of the observation to act on  either

    Args:
        rewards: Numbers `[T, N]`, of T steps of N environments.
        values: Numbers `[T, N]`: estimates for what each step acted on.
        next_values: Numbers `[T, N]`: estimates for what came of it.
        continues: Booleans `[T, N]`: whether the next step is one of the same
            episode.
        discount: A number in [0, 1].
        lambda_: A number in [0, 1]. At 0 an advantage is the error of a value
            by the next one, at 1 by all rewards to come.

    Returns:
        A pair of float64 arrays `[T, N]`: advantages and targets.

    Raises:
        ValueError: If an argument is not as above.
    """
    for name, number in (("discount", discount), ("lambda_", lambda_)):
        if not 0 <= number <= 1:
            raise ValueError(
                f"Expected `{name}` in [0, 1]. Received: {name}={number}"
            )
    continues = np.asarray(continues)
    if continues.dtype != bool:
        raise ValueError(
            "Expected `continues` to be booleans. Received: "
            f"{continues.dtype.name}"
        )
    arrays = {
        "rewards": np.asarray(rewards, np.float64),
        "values": np.asarray(values, np.float64),
        "next_values": np.asarray(next_values, np.float64),
        "continues": continues,
    }
    for name, array in arrays.items():
        if array.ndim != 2 or array.shape != arrays["rewards"].shape:
            raise ValueError(
                f"Expected `{name}` of shape [T, N], that of all arguments. "
                f"Received: shape {list(array.shape)}, of `rewards` "
                f"{list(arrays['rewards'].shape)}"
            )
    rewards, values, next_values, _ = arrays.values()
    errors = rewards + discount * next_values - values
    decay = discount * lambda_ * continues
    advantages = np.zeros_like(errors)
    later = np.zeros(errors.shape[1:])
    for step in reversed(range(len(errors))):
        advantages[step] = later = errors[step] + decay[step] * later
    return advantages, advantages + values


def normalize_advantages(advantages, epsilon=1e-8):
    """Shifts and scales advantages to mean 0 and standard deviation 1.

        (advantages - mean(advantages)) / (std(advantages) + epsilon)

    Of a minibatch. Equal advantages, and a single one, become 0.

    Args:
        advantages: Floats `[B]`.
        epsilon: A small positive number.

    Returns:
        A tensor `[B]` of the dtype of `advantages`.

    Raises:
        ValueError: If `advantages` are not as above.
    """
    advantages = _floats("advantages", advantages)
    # Without the first one equal ones are zeros, whatever the mean rounds to.
    advantages = advantages - advantages[:1]
    advantages = advantages - tf.reduce_mean(advantages)
    deviation = tf.sqrt(tf.reduce_mean(tf.square(advantages)))
    return advantages / (deviation + epsilon)


def clipped_policy_loss(logits, actions, old_log_probs, advantages, clip):
    """Computes the loss of the clipped surrogate objective of PPO.

        ratio[b] = exp(log_probabilities(logits, actions)[b]
                       - old_log_probs[b])
        - mean over b of min(ratio[b] * advantages[b],
                             clipped(ratio[b]) * advantages[b])

    where `clipped` is into [1 - clip, 1 + clip]: equation 7 of
    [arXiv 1707.06347](https://arxiv.org/abs/1707.06347). An action that has
    become more likely by more than `clip`, and was good, or less likely, and
    was bad, gets no gradient any more.

    Args:
        logits: Floats `[B, num_actions]`.
        actions: Integers `[B]`, the actions that were taken.
        old_log_probs: Numbers `[B]`: their `log_probabilities` then. No
            gradient flows into them.
        advantages: Numbers `[B]`. No gradient flows into them.
        clip: A number that is not negative.

    Returns:
        A scalar tensor of the dtype of `logits`.

    Raises:
        ValueError: If an argument is not of the above rank, shape or dtype.
        tf.errors.InvalidArgumentError: If an action is not in
            `[0, num_actions)`.
    """
    ratios = tf.exp(_log_ratios(logits, actions, old_log_probs))
    advantages = _constants("advantages", advantages, ratios)
    _check_clip(clip)
    clipped = tf.clip_by_value(ratios, 1 - clip, 1 + clip)
    return -tf.reduce_mean(
        tf.minimum(ratios * advantages, clipped * advantages)
    )


def value_loss(values, targets, old_values=None, clip=None):
    """Computes the mean squared error of values.

        mean over b of (values[b] - targets[b])^2

    Not half of it: a weight of 0.5 is then that of the same name in
    Stable-Baselines3. With `clip`, the mean is over the larger one of this and

        (old_values[b] + clipped(values[b] - old_values[b]) - targets[b])^2

    where `clipped` is into [-clip, clip]: detail 9 of Huang et al. (2022),
    https://iclr-blog-track.github.io/2022/03/25/ppo-implementation-details/.
    The right `clip` depends on how large the rewards are.

    Args:
        values: Floats `[B]`.
        targets: Numbers `[B]`. No gradient flows into them.
        old_values: Numbers `[B]`, the values when the actions were taken. No
            gradient flows into them. Not used without `clip`.
        clip: A number that is not negative, or None.

    Returns:
        A scalar tensor of the dtype of `values`.

    Raises:
        ValueError: If an argument is not of the above rank, shape or dtype, or
            there are no `old_values` to clip by.
    """
    values = _floats("values", values)
    targets = _constants("targets", targets, values)
    squares = tf.square(values - targets)
    if clip is not None:
        _check_clip(clip)
        if old_values is None:
            raise ValueError("Expected `old_values` with `clip`.")
        old_values = _constants("old_values", old_values, values)
        clipped = old_values + tf.clip_by_value(
            values - old_values, -clip, clip
        )
        squares = tf.maximum(squares, tf.square(clipped - targets))
    return tf.reduce_mean(squares)


def mean_entropy(logits):
    """Computes the mean entropy of a policy: see `reinforce.entropy_bonus`.

    Args:
        logits: Floats `[B, num_actions]`.

    Returns:
        A scalar tensor of the dtype of `logits`, in nats.

    Raises:
        ValueError: If `logits` are not as above.
    """
    logits = tf.convert_to_tensor(logits)
    return entropy_bonus(logits) / tf.cast(tf.shape(logits)[0], logits.dtype)


def clip_fraction(logits, actions, old_log_probs, clip):
    """Computes which part of the ratios is out of [1 - clip, 1 + clip].

    Arguments and errors are those of `clipped_policy_loss`.

    Returns:
        A scalar tensor of the dtype of `logits`, in [0, 1].
    """
    ratios = tf.exp(_log_ratios(logits, actions, old_log_probs))
    _check_clip(clip)
    is_out = tf.abs(ratios - 1) > clip
    return tf.reduce_mean(tf.cast(is_out, ratios.dtype))


def approximate_kl(logits, actions, old_log_probs):
    """Estimates how far a policy is from the one that acted.

        mean over b of ratio[b] - 1 - log(ratio[b])

    with the ratios of `clipped_policy_loss`: an estimate of the divergence
    KL(old, new) that is never negative. See Schulman (2020), [Approximating KL
    Divergence](http://joschu.net/blog/kl-approx.html).

    Arguments and errors are those of `clipped_policy_loss`.

    Returns:
        A scalar tensor of the dtype of `logits`, in nats.
    """
    log_ratios = _log_ratios(logits, actions, old_log_probs)
    return tf.reduce_mean(tf.math.expm1(log_ratios) - log_ratios)


@dataclasses.dataclass
class Rollout:
    """Steps of several environments, and what was thought of them.

    Attributes:
        frames: uint8 `[T, N, height, width, channels]`: what was seen.
        logits: float32 `[T, N, num_actions]`, for these frames.
        values: float32 `[T, N]`, likewise.
        actions: int64 `[T, N]`: what was done.
        rewards: float32 `[T, N]`: what came of it.
        next_values: float32 `[T, N]`: see `generalized_advantages`.
        continues: bool `[T, N]`: likewise.
        episodes: Of those that ended, tuples of the step, the environment's
            number among all, and a tuple of `length`, `return_` and `end` (see
            `Row`).
    """

    frames: np.ndarray
    logits: np.ndarray
    values: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    next_values: np.ndarray
    continues: np.ndarray
    episodes: list

    @classmethod
    def empty(cls, steps, num_envs, frame_shape, num_actions):
        """A rollout that is yet to be filled."""
        of_steps = (steps, num_envs)
        return cls(
            frames=np.empty((*of_steps, *frame_shape), np.uint8),
            logits=np.empty((*of_steps, num_actions), np.float32),
            values=np.empty(of_steps, np.float32),
            actions=np.empty(of_steps, np.int64),
            rewards=np.empty(of_steps, np.float32),
            next_values=np.empty(of_steps, np.float32),
            continues=np.empty(of_steps, bool),
            episodes=[],
        )

    def flat(self, name):
        """An attribute as `[T * N, ...]`, environments within steps."""
        array = getattr(self, name)
        return array.reshape(-1, *array.shape[2:])


class PPO:
    """PPO in the environments of a run.

    An iteration is an update: `num_steps` steps of each environment, then
    `epochs` times a change of the weights for each of `minibatches`. What the
    next one does depends on `state()`, on what the learner writes, on the steps
    so far if the learning rate is annealed, and on nothing else.

    The loss of a life ends an episode for the advantages, though not the game.

    A2C is the same with one epoch and one minibatch, whose gradient is that of
    `reinforce.policy_gradient_loss`, but advantages are not normalised.

    Several workers do together what one does: each plays a share of the
    environments, and differentiates the part of each minibatch that is of them.

    Args:
        settings: `Settings`.
        make_env: See `training.train`.
        network: Likewise.
        team: `workers.Workers` who train together. By default it is alone.

    Attributes:
        learner: The policy and its critic: a `Learner`. None until `build` is
            called.

    Raises:
        ValueError: If there is no such game, or the environment is not one
            of uint8 frames and discrete actions.
    """

    def __init__(self, settings, make_env=None, network=None, team=None):
        self._settings = settings
        self._network = network
        self._team = team or workers.Alone()
        self._share = self._team.share(settings.num_envs)
        self._games = environments.make_games(settings, make_env, self._share)
        self.learner = None

    def build(self):
        """Makes the policy and its optimizer, which takes seconds."""
        settings, games = self._settings, self._games
        seeds = np.random.SeedSequence(settings.seed).generate_state(2)
        self._rng = np.random.default_rng(seeds[0])
        self._frames = games.reset(int(seeds[1]))
        self._sample = Sampler(self._rng, self._share, settings.num_envs)
        self.learner = Learner(
            settings,
            games.frame_shape,
            games.num_actions,
            network=self._network,
            value=True,
            epsilon=_EPSILON,
        )
        self._gradient = None
        self._normalize = tf.function(
            normalize_advantages,
            autograph=False,
            input_signature=[tf.TensorSpec([None])],
        )
        # The same memory for each of them.
        self._rollout = Rollout.empty(
            settings.num_steps,
            games.num_envs,
            games.frame_shape,
            games.num_actions,
        )

    def iterate(self, progress, bar, stop):
        """Plays steps and updates the weights. See `Reinforce.iterate`."""
        settings = self._settings
        if settings.anneal:
            done = min(1.0, progress.steps / settings.steps)
            rate = settings.learning_rate * (1 - done)
            self.learner.optimizer.learning_rate = rate
        self.learner.evaluator.begin()
        rollout = self._play(progress, bar, stop)
        if any(self._team.gather(stop.requested)):
            return None
        begin = time.perf_counter()
        scalars = self._update(rollout)
        progress.update_seconds += time.perf_counter() - begin
        return self._all_episodes(rollout), scalars

    def _all_episodes(self, rollout):
        """Returns the episodes of all workers, whose weights are the same.

        Raises:
            RuntimeError: If they are not.
        """
        number = 0
        if self._team.count > 1:
            number = workers.checksum(self.learner.model)
        everyones = self._team.gather((number, rollout.episodes))
        for index, (other, _) in enumerate(everyones):
            if other != everyones[0][0]:
                raise RuntimeError(
                    f"the weights of worker {index} are not those of the chief "
                    "any more: the workers' processors compute differently"
                )
        episodes = [one for _, episodes in everyones for one in episodes]
        # As one process ends them.
        return [tuple(one) for *_, one in sorted(episodes, key=lambda e: e[:2])]

    def _play(self, progress, bar, stop):
        """Plays the steps of an update.

        Args:
            progress: Has its steps and seconds counted up.
            bar: The `Bar` to show them in.
            stop: A `process.Stop`, at whose request it ends early.

        Returns:
            A `Rollout`, which the next one overwrites.
        """
        rollout, act = self._rollout, self.learner.evaluator.act
        rollout.episodes = []
        acting = np.empty_like(rollout.frames[0])  # the same array every time
        for t in range(self._settings.num_steps):
            if stop.requested:
                return rollout
            begin = time.perf_counter()
            rollout.frames[t] = acting[:] = self._frames
            outputs = act(acting)
            rollout.logits[t] = outputs["logits"]
            rollout.values[t] = outputs["value"][:, 0]
            rollout.actions[t] = self._sample(outputs["logits"])
            chosen = time.perf_counter()
            step = self._games.step(rollout.actions[t])
            self._frames = step.frames
            ends = step.terminated | step.life_lost
            rollout.rewards[t] = step.rewards
            rollout.continues[t] = ~(ends | step.truncated)
            # What comes next is known where it does not go on. Elsewhere it is
            # the value of the next step.
            rollout.next_values[t] = 0
            for episode in step.episodes:
                is_over = bool(step.terminated[episode.environment])
                ended = (
                    episode.length,
                    episode.total_reward,
                    "terminated" if is_over else "truncated",
                )
                number = self._share[episode.environment]
                rollout.episodes.append((t, number, ended))
                if not is_over:
                    rollout.next_values[t, episode.environment] = self._value(
                        episode.last_frame
                    )
            end = time.perf_counter()
            progress.policy_seconds += chosen - begin
            progress.environment_seconds += end - chosen
            progress.steps += self._settings.num_envs
            bar.update(progress.steps)
        acting[:] = self._frames
        last_values = act(acting)["value"][:, 0]
        following = np.concatenate([rollout.values[1:], last_values[None]])
        np.copyto(rollout.next_values, following, where=rollout.continues)
        return rollout

    def _value(self, frame):
        """What is thought of a frame that is not acted upon."""
        outputs = self.learner.model(frame[np.newaxis], training=False)
        return outputs["value"][0, 0]

    def _update(self, rollout):
        """Changes the weights.

        Args:
            rollout: A `Rollout`.

        Returns:
            A dict of numbers to log: means over the minibatches.
        """
        settings, learner, team = self._settings, self.learner, self._team
        sent = team.sent
        rewards = rollout.rewards
        if settings.clip_rewards:
            rewards = np.sign(rewards)
        advantages, targets = generalized_advantages(
            rewards,
            rollout.values,
            rollout.next_values,
            rollout.continues,
            settings.discount,
            settings.gae_lambda,
        )
        logits, actions = rollout.flat("logits"), rollout.flat("actions")
        columns = [
            actions,
            log_probabilities(logits, actions).numpy(),
            targets.reshape(-1).astype(np.float32),
            rollout.flat("values"),
        ]
        # Of all workers' environments, as the numbers of steps below.
        advantages = team.concatenate(advantages, 1).astype(np.float32)
        advantages = advantages.reshape(-1)
        minibatch = learner.evaluator.minibatches(rollout.flat("frames"))
        # In the order of time they cost less.
        parts = [
            np.sort(numbers)
            for _ in range(settings.epochs)
            for numbers in np.array_split(
                self._rng.permutation(len(advantages)), settings.minibatches
            )
        ]
        shares = [self._mine(numbers) for numbers in parts]

        # The structure of the next one is cut while one is differentiated.
        frames_of = _ahead(
            lambda share: minibatch(share[1]) if len(share[1]) else None, shares
        )
        rows = []
        for numbers, (mine, own), frames in zip(
            parts, shares, frames_of, strict=True
        ):
            good = advantages[numbers]
            if settings.algorithm != "a2c":
                good = self._normalize(good).numpy()
            gradients, scalars = self._differentiate(
                frames,
                [good[mine], *(column[own] for column in columns)],
                len(own) / len(numbers),
            )
            loss = float(scalars[0])
            if not np.isfinite(loss):
                raise FloatingPointError(f"the loss is not finite: {loss}")
            norm = learner.optimizer.apply(gradients)
            rows.append([*scalars.numpy(), norm])
        means = np.mean(rows, 0, np.float64)
        return {
            **dict(zip(_SCALARS, means, strict=False)),
            "gradient_norm": means[-1],
            **({"bytes_sent": team.sent - sent} if team.count > 1 else {}),
            "learning_rate": learner.optimizer.learning_rate,
        }

    def _mine(self, numbers):
        """Finds the steps of this worker among those of a minibatch.

        Args:
            numbers: Of all workers' steps, environments within steps.

        Returns:
            Where they are, and their numbers among the worker's own.
        """
        share = self._share
        steps, envs = np.divmod(numbers, self._settings.num_envs)
        mine = np.flatnonzero((share.start <= envs) & (envs < share.stop))
        return mine, steps[mine] * len(share) + envs[mine] - share.start

    def _differentiate(self, frames, columns, weight):
        """Computes the gradient of the loss, and numbers to log.

        Args:
            frames: The frames of this worker's part of a minibatch, as
                `outputs_fn` takes them. None if it has none.
            columns: Arrays, one for each: see `_losses`.
            weight: How much of the minibatch that is, from 0 to 1.

        Returns:
            A pair, of the minibatch as a whole: the gradients, and a float32
            vector of `_SCALARS`.
        """
        variables = self.learner.optimizer.variables
        if frames is None:
            parts = [*map(tf.zeros_like, variables), tf.zeros(len(_SCALARS))]
        else:
            parts = self._part_gradient(frames, columns, weight)
        *gradients, scalars = self._team.sum(parts)
        return gradients, scalars

    def _part_gradient(self, frames, columns, weight):
        """What `_differentiate` returns, in a list, of a part alone."""
        if self._gradient is None:
            outputs_fn = self.learner.evaluator.outputs_fn
            variables = self.learner.optimizer.variables

            def gradient(frames, columns, weight):
                with tf.GradientTape() as tape:
                    outputs = outputs_fn(frames)
                    logits, values = (
                        tf.cast(outputs[name], tf.float32)
                        for name in ("logits", "value")
                    )
                    scalars = weight * self._losses(
                        logits, values[:, 0], *columns
                    )
                    loss = scalars[0]
                return [*gradients_of(tape, loss, variables), scalars]

            # In one graph it takes three quarters of the time. Compiled for
            # any number of rows, as another graph might round differently.
            self._gradient = tf.function(
                gradient, autograph=False
            ).get_concrete_function(
                *_of_any_length((frames, columns)), tf.TensorSpec([])
            )
        return self._gradient(frames, columns, tf.constant(weight))

    def _losses(
        self, logits, values, advantages, actions, old_log_probs, targets, old
    ):
        """Computes `_SCALARS` of a minibatch, a float32 vector."""
        settings = self._settings
        policy = clipped_policy_loss(
            logits, actions, old_log_probs, advantages, settings.clip
        )
        value = value_loss(values, targets, old, settings.value_clip)
        entropy = mean_entropy(logits)
        loss = (
            policy + settings.value_weight * value - settings.entropy * entropy
        )
        clipped = clip_fraction(logits, actions, old_log_probs, settings.clip)
        divergence = approximate_kl(logits, actions, old_log_probs)
        return tf.stack([loss, policy, value, entropy, clipped, divergence])

    def state(self):
        """Returns the state of the actions and the environments, for JSON.

        It is that of all workers, and the same for any number of them.
        """
        states = self._team.gather(self._games.state())
        return {
            "actions": self._rng.bit_generator.state,
            "environments": environments.join_states(states),
        }

    def restore(self, state):
        """Goes back to what `state` has returned.

        Raises:
            Exception: Of any kind, if it is something else.
        """
        self._rng.bit_generator.state = state["actions"]
        games = state["environments"]
        if self._team.count > 1:
            games = environments.part_of_state(games, self._share)
        self._frames = self._games.restore(games)

    def close(self):
        """Closes the environments."""
        self._games.close()


def _ahead(function, items):
    """Yields what a function gives for each item, one ahead, in a thread."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        following = None
        for item in items:
            current, following = following, pool.submit(function, item)
            if current is not None:
                yield current.result()
        yield following.result()


def _of_any_length(tree):
    """The specifications of tensors in a tree, but for their first axis."""
    return tf.nest.map_structure(
        lambda leaf: (
            leaf
            if isinstance(leaf, str)
            else tf.TensorSpec([None, *leaf.shape[1:]], leaf.dtype)
        ),
        tree,
    )


def _log_ratios(logits, actions, old_log_probs):
    log_probs = log_probabilities(logits, actions)
    return log_probs - _constants("old_log_probs", old_log_probs, log_probs)


def _floats(name, tensor):
    """A tensor of floats, of one axis."""
    tensor = tf.convert_to_tensor(tensor)
    if not tensor.dtype.is_floating:
        raise ValueError(
            f"Expected `{name}` to be floats. Received: {tensor.dtype.name}"
        )
    if tensor.shape.rank not in (1, None):
        raise ValueError(
            f"Expected `{name}` of shape [B]. Received: shape {tensor.shape}"
        )
    return tensor


def _constants(name, numbers, like):
    """A tensor of the dtype of another and one for each of its rows."""
    constants = tf.stop_gradient(tf.cast(numbers, like.dtype))
    _check_like(name, constants, like)
    return constants


def _check_like(name, tensor, like):
    if not tensor.shape.is_compatible_with(like.shape[:1]):
        raise ValueError(
            f"Expected `{name}` of shape [B], one for each row of shape "
            f"{like.shape}. Received: shape {tensor.shape}"
        )


def _check_clip(clip):
    # Of a tensor it is known only when it is computed.
    if not tf.is_tensor(clip) and not clip >= 0:
        raise ValueError(
            f"Expected `clip` not to be negative. Received: clip={clip}"
        )
