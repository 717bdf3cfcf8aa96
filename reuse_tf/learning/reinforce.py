"""REINFORCE, from returns and losses to the updates of a policy.

The method is that of Williams (1992), "Simple statistical gradient-following
algorithms for connectionist reinforcement learning", with the normalised
returns of [Khachatourian (2019)](https://arxiv.org/abs/1909.05632). The
functions are pure; an `Episode` holds what they need, of which only the uint8
frames take memory. `Reinforce` plays episodes and updates a policy by them.
"""

import itertools
import time
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from reuse_tf.learning import environments
from reuse_tf.learning.learner import Learner
from reuse_tf.policies import Sampler

# What Adam and RMSprop add to denominators: Keras's default.
_EPSILON = 1e-7
# The number of a frame that is in no structure.
_UNKNOWN = -1


def discounted_returns(rewards, discount):
    """Computes the discounted return of each step of an episode.

        G[t] = rewards[t] + discount * G[t + 1],  G[T] = 0

    Args:
        rewards: Numbers `[T]`, in the order of time.
        discount: A number in [0, 1].

    Returns:
        float64 array `[T]`.

    Raises:
        ValueError: If an argument is not as above.

    Examples:
        >>> discounted_returns([0, 0, 1], 0.5)
        array([0.25, 0.5 , 1.  ])
    """
    rewards = np.asarray(rewards, np.float64)
    if rewards.ndim != 1:
        raise ValueError(
            "Expected `rewards` of shape [T]. Received: shape "
            f"{list(rewards.shape)}"
        )
    if not 0 <= discount <= 1:
        raise ValueError(
            f"Expected `discount` in [0, 1]. Received: discount={discount}"
        )
    backwards = itertools.accumulate(
        reversed(rewards.tolist()),
        lambda later, reward: reward + discount * later,
    )
    return np.array(list(backwards)[::-1], np.float64)


def normalize_returns(returns, epsilon=1e-8):
    """Shifts and scales returns to a mean of 0 and a standard deviation of 1.

        (returns - mean(returns)) / (std(returns) + epsilon)

    Taken over all the steps of an update. The mean is a baseline: steps whose
    return is below it are made less likely. Equal returns all become 0.

    Args:
        returns: Numbers `[T]`.
        epsilon: A small positive number.

    Returns:
        float64 array `[T]`.

    Raises:
        ValueError: If `returns` is not of rank 1.
    """
    returns = np.asarray(returns, np.float64)
    if returns.ndim != 1:
        raise ValueError(
            "Expected `returns` of shape [T]. Received: shape "
            f"{list(returns.shape)}"
        )
    if returns.size == 0:
        return returns
    # Without the first one equal ones are zeros, whatever the mean rounds to.
    returns = returns - returns[0]
    return (returns - returns.mean()) / (returns.std() + epsilon)


def log_probabilities(logits, actions):
    """Computes the logarithms of the probabilities of actions.

        log(softmax(logits[t])[actions[t]])

    Args:
        logits: Float tensor `[T, num_actions]`.
        actions: Integers `[T]`.

    Returns:
        A tensor `[T]` of the dtype of `logits`.

    Raises:
        ValueError: If an argument is not of the above rank, shape or dtype.
        tf.errors.InvalidArgumentError: If an action is not in
            `[0, num_actions)`.
    """
    logits = _logits(logits)
    actions = tf.convert_to_tensor(actions)
    if not actions.dtype.is_integer:
        raise ValueError(
            f"Expected `actions` to be integers. Received: {actions.dtype.name}"
        )
    _check_one_each("actions", actions, logits)
    # The cross entropy with a single label is minus its log-probability.
    return -tf.nn.sparse_softmax_cross_entropy_with_logits(actions, logits)


def policy_gradient_loss(logits, actions, returns):
    """Computes the loss whose gradient is that of REINFORCE.

        - sum over t of returns[t] * log_probabilities(logits, actions)[t]

    A sum, so that the losses of the parts of an episode add up to its own.

    Args:
        logits: Float tensor `[T, num_actions]`.
        actions: Integers `[T]`, the actions that were taken.
        returns: Numbers `[T]`. No gradient flows into them.

    Returns:
        A scalar tensor of the dtype of `logits`.

    Raises:
        ValueError: If an argument is not of the above rank, shape or dtype.
        tf.errors.InvalidArgumentError: If an action is not in
            `[0, num_actions)`.
    """
    logits = _logits(logits)
    log_probs = log_probabilities(logits, actions)
    returns = tf.stop_gradient(tf.cast(returns, log_probs.dtype))
    _check_one_each("returns", returns, logits)
    return -tf.reduce_sum(returns * log_probs)


def entropy_bonus(logits):
    """Computes the entropy of a policy, summed over steps.

        - sum over t and a of p[t, a] * log(p[t, a]),  p = softmax(logits)

    Subtracted from the loss, it keeps a policy from settling on one action
    early (Williams & Peng, 1991). An action that cannot be taken, whose logit
    is -infinity, adds nothing.

    Args:
        logits: Float tensor `[T, num_actions]`.

    Returns:
        A scalar tensor of the dtype of `logits`, in nats.

    Raises:
        ValueError: If `logits` is not as above.
    """
    logits = _logits(logits)
    probabilities = tf.nn.softmax(logits)
    logs = tf.where(probabilities > 0, tf.nn.log_softmax(logits), 0)
    return -tf.reduce_sum(probabilities * logs)


class Episode:
    """The steps of one episode, in the order of time.

    Attributes:
        frames: uint8 arrays `[height, width, channels]`: what was seen. May
            be emptied when no longer needed.
        actions: Integers: what was done then.
        rewards: Floats: what came of it.
    """

    def __init__(self):
        self.frames = []
        self.actions = []
        self.rewards = []

    def __len__(self):
        return len(self.actions)

    def append(self, frame, action, reward):
        """Adds a step.

        Args:
            frame: uint8 array `[height, width, channels]`. Copied if it can
                be written to.
            action: An integer.
            reward: A number.
        """
        self.frames.append(_read_only(frame))
        self.actions.append(int(action))
        self.rewards.append(float(reward))


class Gradient(NamedTuple):
    """A policy gradient, and what it is the gradient of.

    Attributes:
        gradients: A list of tensors, one per variable.
        loss: The loss per step, that of the entropy included.
        entropy: Of the policy, per step, in nats.
    """

    gradients: list
    loss: float
    entropy: float


def policy_gradient(
    logits_fn,
    variables,
    episodes,
    *,
    discount,
    entropy=0.0,
    max_frames=None,
    structure=None,
    numbers=None,
):
    """Computes the gradient of the loss per step of episodes.

        (policy_gradient_loss - entropy * entropy_bonus) / steps

    The returns are discounted in each episode, and normalised over all.

    Args:
        logits_fn: A function from frames, uint8 `[T, height, width,
            channels]`, to logits `[T, num_actions]`, differentiable under
            `tf.GradientTape`: a `Runner`, or a Keras model.
        variables: The variables to differentiate with respect to.
        episodes: A list of `Episode`, of at least one step in all.
        discount: See `discounted_returns`.
        entropy: Weight of the entropy bonus.
        max_frames: The most frames to pass to a call of `logits_fn`, which
            bounds the memory it takes. By default all are passed at once, one
            episode after the other.
        structure: The `reuse_tf.Structure` of the frames of all episodes, one
            after the other, for a `Runner` to be called with at once, instead
            of the episodes' `frames`.
        numbers: Integers, by step of all episodes, if `structure` is one of
            other frames too, or not of all of these: a frame's number in it, or
            -1 if it is not there but in the episode's `frames`.

    Returns:
        A `Gradient`.

    Raises:
        ValueError: If there are no steps.
        FloatingPointError: If the loss is not finite.
    """
    actions = np.concatenate([episode.actions for episode in episodes])
    steps = len(actions)
    if steps == 0:
        raise ValueError("Expected `episodes` of at least one step in all.")
    returns = normalize_returns(
        np.concatenate(
            [discounted_returns(e.rewards, discount) for e in episodes]
        )
    )
    gradients, loss, nats = None, 0.0, 0.0
    for part, frames in _parts(episodes, max_frames, structure, numbers):
        with tf.GradientTape() as tape:
            logits = logits_fn(frames)
            part_nats = entropy_bonus(logits) / steps
            part_loss = (
                policy_gradient_loss(
                    logits, actions[part].astype(np.int32), returns[part]
                )
                / steps
            )
            if entropy:
                part_loss -= entropy * part_nats
        part_gradients = gradients_of(tape, part_loss, variables)
        gradients = (
            part_gradients
            if gradients is None
            else [a + b for a, b in zip(gradients, part_gradients, strict=True)]
        )
        loss += float(part_loss)
        nats += float(part_nats)
    if not np.isfinite(loss):
        raise FloatingPointError(f"the loss is not finite: {loss}")
    return Gradient(gradients, loss, nats)


def gradients_of(tape, loss, variables):
    """The gradients of a loss: zeros for variables that it does not use.

    TensorFlow's own `unconnected_gradients` fails for some of these.
    """
    return [
        tf.zeros_like(variable) if gradient is None else gradient
        for variable, gradient in zip(
            variables, tape.gradient(loss, variables), strict=True
        )
    ]


def _parts(episodes, max_frames, structure, numbers):
    """Yields steps, among those of all episodes, and frames to pass for them.

    The arguments are those of `policy_gradient`.
    """
    if structure is not None and numbers is None:
        yield slice(None), structure
        return
    frames = [frame for episode in episodes for frame in episode.frames]
    if structure is None:
        numbers = [_UNKNOWN] * len(frames)
    numbers = np.asarray(numbers)
    for is_known in False, True:
        steps = np.flatnonzero((numbers != _UNKNOWN) == is_known)
        size = max_frames or len(frames)
        for begin in range(0, len(steps), size):
            part = steps[begin : begin + size]
            if is_known:
                yield part, structure.take(numbers[part])
            else:
                yield part, np.stack([frames[step] for step in part])


class Reinforce:
    """REINFORCE in the environments of a run.

    An iteration is an update, as soon as `batch_episodes` episodes have ended.
    One environment plays them one after the other, each with the weights of
    the update before. Several never wait for each other: where an episode has
    ended the next one begins, and those that have not ended when the weights
    change go on with the new ones. So the older steps of an episode may have
    been chosen by older weights. The update takes them for steps of the present
    ones, as all others: its gradient is that of whole episodes at the present
    weights. An episode is a whole game: the loss of a life does not end it.

    Besides settings and progress an iteration depends on what `state` returns
    and the learner writes, and on nothing else.

    Args:
        settings: `Settings`.
        make_env: See `training.train`.
        network: Likewise.
        team: `workers.Workers`, of which there must be one.

    Attributes:
        learner: The policy: a `Learner`. None until `build` is called.

    Raises:
        ValueError: If there is no such game, or the environment is not one
            of uint8 frames and discrete actions, or there are several workers.
    """

    def __init__(self, settings, make_env=None, network=None, team=None):
        if team is not None and team.count > 1:
            raise ValueError(
                "REINFORCE trains in one process. Received: TF_CONFIG of "
                f"{team.count} workers, who can train by --algorithm=ppo or a2c"
            )
        self._settings = settings
        self._network = network
        make = environments.make_games
        if settings.num_envs == 1 and settings.preprocessing == "paper":
            make = environments.make_one
        self._games = make(settings, make_env)
        self.learner = None

    def build(self):
        """Makes the policy and its optimizer, which takes seconds."""
        settings, games = self._settings, self._games
        seeds = np.random.SeedSequence(settings.seed).generate_state(2)
        self._rng = np.random.default_rng(seeds[0])
        self._frames = games.reset(int(seeds[1]))
        self._running = [_Running() for _ in range(games.num_envs)]
        self._sample = Sampler(self._rng)
        self.learner = Learner(
            settings,
            games.frame_shape,
            games.num_actions,
            network=self._network,
            epsilon=_EPSILON,
        )

    def iterate(self, progress, bar, stop):
        """Plays episodes and updates the weights, once.

        Args:
            progress: The run's `Progress`, no bound of which is reached. Has
                its steps counted up, and its seconds, but for the total.
            bar: The `Bar` to show them in.
            stop: A `process.Stop`, at whose request episodes are left where
                they are.

        Returns:
            A pair of the episodes, as tuples of `length`, `return_` and `end`
            (see `Row`), and a dict of numbers to log. None if it was stopped.

        Raises:
            FloatingPointError: If the loss, a gradient, a weight or a logit is
                not finite.
        """
        self.learner.evaluator.begin()
        played = self._play(progress, bar, stop)
        if stop.requested:
            return None
        begin = time.perf_counter()
        scalars = self._update(played)
        progress.update_seconds += time.perf_counter() - begin
        return [
            (len(running), sum(running.episode.rewards), running.end)
            for running in played
        ], scalars

    def _play(self, progress, bar, stop):
        """Plays until there are episodes for an update, or steps at an end.

        Args:
            progress: See `iterate`.
            bar: Likewise.
            stop: Likewise.

        Returns:
            A list of `_Running`, in the order in which their episodes ended,
            those that are cut being the last.
        """
        settings, games = self._settings, self._games
        most = None  # episodes
        enough = settings.batch_episodes
        if settings.episodes is not None:
            most = settings.episodes - progress.episodes
            enough = min(enough, most)
        for running in self._running:
            running.forget_numbers()
        act, ended, acted = self.learner.evaluator.act, [], 0
        acting = np.empty_like(self._frames)  # the same array every time
        while len(ended) < enough and not stop.requested:
            begin = time.perf_counter()
            acting[:] = self._frames
            actions = self._sample(act(acting))
            chosen = time.perf_counter()
            step = games.step(actions)
            self._frames = step.frames
            counted = games.num_envs
            if settings.steps is not None:
                # What is beyond them is played, and left out.
                counted = min(counted, settings.steps - progress.steps)
            for i, running in enumerate(self._running[:counted]):
                running.append(
                    acting[i], actions[i], step.rewards[i], acted + i
                )
                if step.terminated[i] or step.truncated[i]:
                    is_over = step.terminated[i]
                    running.end = "terminated" if is_over else "truncated"
                    ended.append(running)
                    self._running[i] = _Running()
            acted += games.num_envs
            progress.steps += counted
            if progress.steps == settings.steps:
                ended += [running for running in self._running if len(running)]
                enough = len(ended)
                self._frames = games.begin()
                self._running = [_Running() for _ in self._running]
            end = time.perf_counter()
            progress.policy_seconds += chosen - begin
            progress.environment_seconds += end - chosen
            bar.update(progress.steps)
        return ended[:most]

    def _update(self, played):
        """Differentiates episodes and updates the weights.

        Nothing large is left behind, for the next episodes to be played in the
        memory that this took.

        Args:
            played: A list of `_Running`. The frames of their episodes are
                dropped if not needed.

        Returns:
            A dict of numbers to log.
        """
        learner = self.learner
        max_frames = learner.evaluator.max_frames
        structure = learner.evaluator.end()
        numbers = [n for running in played for n in running.numbers]
        if self._games.num_envs == 1:
            # Recorded are just these steps, in this order. If they are too many
            # to differentiate at once, they are searched again, part by part.
            numbers = None
            if structure is not None and len(structure.order) > max_frames:
                structure = None
        if structure is not None:
            for running in played:
                running.drop_frames()
        gradient = policy_gradient(
            learner.evaluator.outputs_fn,
            learner.optimizer.variables,
            [running.episode for running in played],
            discount=self._settings.discount,
            entropy=self._settings.entropy,
            max_frames=max_frames,
            structure=structure,
            numbers=numbers,
        )
        norm = learner.optimizer.apply(gradient.gradients)
        return {
            "loss": gradient.loss,
            "entropy": gradient.entropy,
            "gradient_norm": norm,
        }

    def state(self):
        """Returns the state of the actions and the environments, for JSON."""
        return {
            "actions": self._rng.bit_generator.state,
            "environments": self._games.state(),
        }

    def restore(self, state):
        """Goes back to what `state` has returned.

        The steps of episodes that go on are those that the environments play
        again.

        Raises:
            Exception: Of any kind, if it is something else.
        """
        self._rng.bit_generator.state = state["actions"]
        self._running = [_Running() for _ in self._running]
        self._frames = self._games.restore(
            state["environments"],
            lambda i, *step: self._running[i].append(*step, _UNKNOWN),
        )

    def close(self):
        """Closes the environments."""
        self._games.close()


class _Running:
    """An episode of an environment, and where its frames were recorded.

    Attributes:
        episode: An `Episode`.
        numbers: By step, its number among all that were acted upon since the
            last update, or `_UNKNOWN` if it is from before.
        end: See `Row`.
    """

    def __init__(self):
        self.episode = Episode()
        self.numbers = []
        self.end = "cut"  # unless it comes to another

    def __len__(self):
        return len(self.episode)

    def append(self, frame, action, reward, number):
        self.episode.append(frame, action, reward)
        self.numbers.append(number)

    def forget_numbers(self):
        self.numbers = [_UNKNOWN] * len(self)

    def drop_frames(self):
        """Keeps the frames of unknown number alone."""
        frames = self.episode.frames
        for step, number in enumerate(self.numbers):
            if number != _UNKNOWN:
                frames[step] = None


def _read_only(frame):
    """A frame that stays, as an environment may use its array again."""
    if frame.flags.writeable:
        frame = frame.copy()
        frame.flags.writeable = False
    return frame


def _logits(logits):
    logits = tf.convert_to_tensor(logits)
    if not logits.dtype.is_floating:
        raise ValueError(
            f"Expected `logits` to be floats. Received: {logits.dtype.name}"
        )
    if logits.shape.rank not in (2, None):
        raise ValueError(
            "Expected `logits` of shape [T, num_actions]. Received: shape "
            f"{logits.shape}"
        )
    return logits


def _check_one_each(name, tensor, logits):
    if not tensor.shape.is_compatible_with(logits.shape[:1]):
        raise ValueError(
            f"Expected `{name}` of shape [T], one for each of the logits "
            f"of shape {logits.shape}. Received: shape {tensor.shape}"
        )
