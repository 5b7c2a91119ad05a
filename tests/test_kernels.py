"""What a technique dispatches in a step doesn't grow with the number of tensors, unless its reason stands here."""

import pytest

from benchmarks.kernels import WAITS, beyond_bare
from benchmarks.overhead import NEEDS_IMAGES, SAM, TECHNIQUES, TOGETHER

FEW, MANY = 4, 12  # layers
TENSORS = 2 * (MANY - FEW)

# Operations for each tensor more (a layer has two, a matrix and a bias; an activation counts with its layer).
GROWS = {
    "GroupLassoPenalty": 1,  # norms of a matrix's units, and what is made of them: no operation over a list has those
    "MaxNorm": 1,
    "UnitNorm": 1,
    "GradientCentralization": 1,  # a mean of a matrix's units, and taking it away
    "OrthogonalPenalty": 2.5,  # matrix products
    "OrthogonalPenalty(probes=8)": 5.5,  # a draw of eight vectors, and products with them
    "CautiousWeightDecay": 1,  # a comparison with a number and a choice
    "GradientNoise(rademacher)": 6,  # bits, of which signs are made
    "GradientNoise": 3,  # a tensor's numbers are those that torch would draw for it
    "ActivityPenalty": 4,  # for each activation
    "GradientClipping(adaptive)": 4.5,
    SAM: 3,  # a second pass forward and backward
    f"{SAM}(fraction=0.5)": 3,
    f"{SAM}(adaptive)": 3,
    "ActivationStats, every step": 38,  # for each activation
    "InsertDropout": 3,  # for each activation
    "InsertDropout(spatial)": 2.5,
    "InsertDropConnect": 3,
    "Mixout": 4,
    "InsertLayerDrop": 3.5,  # for each activation
    "RDrop, with dropout": 3,  # the dropout that it needs, for each activation
    "DecorrelationPenalty": 17,  # for each activation: a covariance of its features, forward and backward
    "AdversarialTraining": 5,  # a second pass forward, and backward to the inputs
    "InputGradientPenalty": 4,  # a second pass backward, through the first
    "JacobianPenalty": 4,
    TOGETHER: 8.5,
}
# On the CPU, where it costs nothing, whether anything is to be shortened is asked, and whether a
# step that is run again has changed what the module holds.
MAY_ASK = ("GradientClipping", SAM, "AdversarialTraining", TOGETHER)
NAMES = [name for name in TECHNIQUES if not name.startswith("  ") and name not in NEEDS_IMAGES]


@pytest.mark.parametrize("name", NAMES)
def test_operations_dont_grow_with_tensors_and_nothing_is_asked_for(name):
    few, many = (beyond_bare(TECHNIQUES[name], layers) for layers in (FEW, MANY))
    counts = [sum(count for operation, count in found.items() if operation not in WAITS) for found in (few, many)]
    # On the CPU it depends on the gradients whether there is anything to be shortened, which takes an operation.
    assert (counts[1] - counts[0]) / TENSORS <= GROWS.get(name, 0) + 0.2
    if not name.startswith(MAY_ASK):
        assert not any(many[operation] for operation in WAITS)
