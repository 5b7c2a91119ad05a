from torch import nn

from lightning_reg.init.followers import following_activations


class Unseen(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, inputs):
        return self.layers(inputs)


class Backwards(nn.Sequential):
    def forward(self, inputs):
        for layer in reversed(self):
            inputs = layer(inputs)
        return inputs


def test_auto_picks_by_the_activation_that_follows():
    relu = nn.ReLU()  # one module may stand in many places
    network = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)),
        nn.Dropout2d(0.1),
        nn.MaxPool2d(2),
        relu,
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Conv2d(8, 8, 1),
        relu,
        nn.Flatten(),
        nn.Linear(8, 8),
        nn.LayerNorm((8,)),
        nn.SELU(),
        nn.Linear(8, 8),
        Unseen(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)),
        nn.GELU(),
        Backwards(nn.ELU(), nn.Linear(8, 8)),
        nn.Linear(8, 4),
    )
    following = following_activations(network)
    assert {name: type(following[layer]) for name, layer in network.named_modules() if layer in following} == {
        "0.0": nn.ReLU,
        "4": nn.Identity,  # straight into another layer
        "5": nn.ReLU,
        "8": nn.SELU,
        "11": type(None),
        "12.layers.0": nn.Tanh,
        "12.layers.2": type(None),  # what follows inside a module, only its code knows
        "15": nn.Identity,  # the output
    }
