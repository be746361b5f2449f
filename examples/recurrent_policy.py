"""A recurrent policy's update with episode ends inside the rollout: one call against a loop.

    python examples/recurrent_policy.py [--envs 2] [--steps 128] [--updates 40]

PPO with an LSTM collects rollouts in which episodes end anywhere, so the state must be zero again
after each end. RL libraries run the update as a loop of single steps that masks the state before
each one (CleanRL's ppo_atari_lstm.py is the pattern). `fastrnn.LSTM(x, hx, resets=starts)` is the
same in one call. Both policies here make each update from the same weights and the same rollout,
and their losses must agree; the times of their updates are what differs.

The task: a cue is shown at an episode's first step alone, and every later step's reward is 1 for
the action of that cue: without memory the return is chance, with memory of the last episode
it is wrong. 40 updates show times alone, at a reward of chance (0.25 a step at most); learning
shows after a hundred or two (--updates 200, less than a minute).
"""

import argparse
import time

import torch
from torch import nn
from torch.distributions import Categorical

import fastrnn

CUES, FEATURES = 4, 16


class Policy(nn.Module):
    """Encoder, LSTM, and heads for actions and value. loop: whether the LSTM is a loop of steps."""

    def __init__(self, loop, hidden_size):
        super().__init__()
        self.loop = loop
        self.encoder = nn.Linear(CUES + 1, FEATURES)
        self.lstm = (nn if loop else fastrnn).LSTM(FEATURES, hidden_size)
        self.actor, self.critic = nn.Linear(hidden_size, CUES), nn.Linear(hidden_size, 1)

    def forward(self, observations, hx, starts):
        """observations `[T, B, CUES + 1]`, starts bool `[T, B]`: logits, values, final state."""
        x = torch.tanh(self.encoder(observations))
        if self.loop:
            outputs = []
            for x_t, start in zip(x, starts):
                alive = (~start).float()[None, :, None]
                h_t, hx = self.lstm(x_t[None], tuple(alive * state for state in hx))
                outputs.append(h_t)
            output = torch.cat(outputs)
        else:
            output, hx = self.lstm(x, hx, resets=starts)
        return self.actor(output), self.critic(output).squeeze(-1), hx


class Environments:
    """Cues at the first steps of episodes that end by chance, one a column."""

    def __init__(self, envs, generator):
        self.generator = generator
        self.cue = torch.randint(0, CUES, (envs,), generator=generator)
        self.start = torch.ones(envs, dtype=torch.bool)

    def observe(self):
        """`(observation [B, CUES + 1], start [B])`: one-hot cue at a start, else the last entry."""
        seen = torch.where(self.start, self.cue, CUES)
        return nn.functional.one_hot(seen, CUES + 1).float(), self.start

    def step(self, action):
        """Rewards of the actions; some episodes end, and new ones show their cue next."""
        reward = ((action == self.cue) & ~self.start).float()
        self.start = torch.rand(self.start.shape, generator=self.generator) < 1 / 16
        new = torch.randint(0, CUES, self.cue.shape, generator=self.generator)
        self.cue = torch.where(self.start, new, self.cue)
        return reward


def rollout(policy, environments, hx, steps):
    """Steps of experience: dict of `[T, B, ...]`, the initial state, and the next one."""
    rows, initial = [], hx
    with torch.no_grad():
        for _ in range(steps):
            observation, start = environments.observe()
            logits, value, hx = policy(observation[None], hx, start[None])
            probabilities = logits[0].softmax(-1)
            action = torch.multinomial(probabilities, 1, generator=environments.generator)[:, 0]
            log_prob = Categorical(probabilities).log_prob(action)
            reward = environments.step(action)
            rows.append((observation, start, action, log_prob, value[0], reward))
    names = "observation", "start", "action", "log_prob", "value", "reward"
    return {n: torch.stack(r) for n, r in zip(names, zip(*rows))}, initial, hx


def returns(reward, start, discount=0.9):
    """Discounted sums that stop where the next episode starts."""
    total, sums = torch.zeros_like(reward[0]), []
    for t in reversed(range(len(reward))):
        goes_on = ~start[t + 1] if t + 1 < len(start) else torch.zeros_like(start[t])
        total = reward[t] + discount * goes_on * total
        sums.append(total)
    return torch.stack(sums[::-1])


def update(policy, optimizer, data, hx, epochs=2):
    """PPO's clipped loss, descended; the last loss."""
    target = returns(data["reward"], data["start"])
    advantage = target - data["value"]
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    for _ in range(epochs):
        logits, value, _ = policy(data["observation"], hx, data["start"])
        chosen = Categorical(logits=logits)
        ratio = (chosen.log_prob(data["action"]) - data["log_prob"]).exp()
        gain = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
        loss = (0.5 * (value - target).square() - gain - 0.01 * chosen.entropy()).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(policy.parameters(), 0.5)
        optimizer.step()
    return loss.item()


def main():
    """Trains both policies and prints losses, rewards, times and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--envs", type=int, default=2)
    parser.add_argument("--steps", type=int, default=128)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--updates", type=int, default=40)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    ours, loop = Policy(False, arguments.hidden), Policy(True, arguments.hidden)
    optimizers = [torch.optim.Adam(policy.parameters(), lr=3e-3) for policy in (ours, loop)]
    generator = torch.Generator().manual_seed(1)
    environments = Environments(arguments.envs, generator)
    hx = (torch.zeros(1, arguments.envs, arguments.hidden),) * 2
    seconds, worst = [0.0, 0.0], 0.0
    for number in range(1, arguments.updates + 1):
        # One policy collects for both: rounding may tip an action, and rollouts would part.
        data, initial, hx = rollout(ours, environments, hx, arguments.steps)
        # Nor may rounding add up: left alone, the two are different policies after 150 updates.
        loop.load_state_dict(ours.state_dict())
        losses = []
        for i, policy in enumerate((ours, loop)):
            begin = time.perf_counter()
            losses.append(update(policy, optimizers[i], data, initial))
            seconds[i] += time.perf_counter() - begin
        worst = max(worst, abs(losses[0] - losses[1]) / max(1.0, abs(losses[1])))
        if number == 1 or number % 5 == 0:
            print(
                f"update {number:3}: loss {losses[0]:8.5f} in one call, {losses[1]:8.5f} as loop; "
                f"reward a step {data['reward'].mean():.2f}"
            )
    each = [f"{total / arguments.updates * 1e3:.1f} ms" for total in seconds]
    print(f"an update takes {each[0]} with resets=, {each[1]} as a loop: ", end="")
    print(f"{seconds[1] / seconds[0]:.1f} times faster; losses differ by at most {worst:.1e}")
    if worst > 1e-4:
        raise SystemExit("the losses do not agree")


if __name__ == "__main__":
    main()
