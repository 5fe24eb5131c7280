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

        For engines: three operations a layer besides the two matrix products, nothing recorded.
        """
        if not torch.jit.is_scripting():
            return self._value_and_gradient_to_compile(features)
        recording = torch.is_grad_enabled()
        torch.set_grad_enabled(False)  # model files may not use `with`
        inputs, weights = [self.first(features)], [self.first.weight]
        state = self.activation(inputs[0])
        for layer in self.hidden:
            inputs.append(layer(state))
            weights.append(layer.weight)  # type: ignore[arg-type]
            state.add_(self.activation(inputs[-1]))
        values = torch.mv(state, self.last.weight[0])
        gradient = self.last.weight.expand_as(state).clone()
        while len(inputs) > 1:
            slope = torch.ops.aten.silu_backward(gradient, inputs.pop())
            gradient.addmm_(slope, weights.pop())
        gradient = torch.mm(torch.ops.aten.silu_backward(gradient, inputs[0]), weights[0])
        torch.set_grad_enabled(recording)
        return values, gradient

    @torch.jit.unused
    def _value_and_gradient_to_compile(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the same, written for a compiler that fuses all but the matrix products.

        A sigmoid costs as much as all else together here, so each is computed only once.
        """
        layers = [self.first, *self.hidden]
        slopes = []
        state = torch.zeros_like(features[:, :1])
        for number, layer in enumerate(layers):
            inner = layer(state if number else features)
            sigmoid = torch.sigmoid(inner)
            activated = inner * sigmoid
            slopes.append(sigmoid + activated * (1 - sigmoid))
            state = state + activated
        values = torch.mv(state, self.last.weight[0])
        gradient = self.last.weight.expand_as(state)
        for layer, slope in zip(reversed(self.hidden), reversed(slopes[1:]), strict=True):
            gradient = gradient + torch.mm(gradient * slope, layer.weight)  # type: ignore[arg-type]
        return values, torch.mm(gradient * slopes[0], self.first.weight)
