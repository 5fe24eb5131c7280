"""Parts that several PMFs are made of."""

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
