"""Parts that several PMFs are made of."""

import torch
from torch import Tensor, nn


class DenseNet(nn.Module):
    """A multilayer perceptron with SiLU activations and residual hidden layers.

    Args:
        inputs: number of features.
        width: hidden units.
        depth: hidden layers, at least one.
    """

    def __init__(self, inputs: int, width: int, depth: int) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, width)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth - 1))
        # No output bias: an energy's zero is arbitrary, and forces would give it no gradient.
        self.last = nn.Linear(width, 1, bias=False)
        self.activation = nn.SiLU()

    def forward(self, features: Tensor) -> Tensor:
        """Map features (copies, inputs) to (copies,)."""
        state = self.activation(self.first(features))
        for layer in self.hidden:
            state = state + self.activation(layer(state))
        return self.last(state).squeeze(-1)

    def value_and_gradient(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the outputs (copies,) and their gradient by the features (copies, inputs).

        For engines: no graph, one exponential a unit, and what need not be kept is overwritten,
        as with many copies memory is what the operations between the matrix products cost.
        """
        recording = torch.is_grad_enabled()
        torch.set_grad_enabled(False)  # model files may not use `with`
        one = features.new_ones(1)
        # The slope of y = z s, s the sigmoid of z, is y + s - y s.
        state = self.first(features)
        sigmoid = torch.sigmoid(state)
        slopes = [torch.lerp(state.mul_(sigmoid), one, sigmoid)]
        weights = [self.first.weight]
        for layer in self.hidden:
            active = layer(state)
            sigmoid = torch.sigmoid(active)
            slopes.append(torch.lerp(active.mul_(sigmoid), one, sigmoid))
            weights.append(layer.weight)  # type: ignore[arg-type]
            state.add_(active)
        values = torch.mv(state, self.last.weight[0])
        gradient = self.last.weight.expand_as(state).clone()
        while len(slopes) > 1:
            gradient.addmm_(slopes.pop().mul_(gradient), weights.pop())
        gradient = torch.mm(gradient.mul_(slopes[0]), weights[0])
        torch.set_grad_enabled(recording)
        return values, gradient
