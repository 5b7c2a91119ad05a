"""Numbers that a step takes out of a mixed loss or its targets: warned of where a loss may depend on them."""

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
import torchmetrics

from tests.callbacks.test_mixed_losses import CLASSES, LABELS, Silent, mixed
from tests.callbacks.test_mixed_losses_over_a_fit import Theirs, each, fit, mixings, of_torch

WEIGHTS = torch.tensor([1.0, 2.0, 5.0])


def normalized(module, out, targets):
    loss = of_torch(module, out, targets)
    return loss / loss.item()


def by_its_size(module, out, targets):
    """The module is sure of the labels, and so the two losses lie far apart."""
    known = F.one_hot(LABELS.repeat(len(out) // len(LABELS)), CLASSES)
    loss = of_torch(module, 0.1 * out + 5 * known, targets)
    return 2 * loss if loss > 1 else loss


def weighed_one_by_one(module, out, targets):
    return (each(out, targets) * torch.stack([WEIGHTS[int(label)] for label in targets])).mean()


def weighed_by_an_array(module, out, targets):
    weights = torch.from_numpy(WEIGHTS.numpy()[targets.numpy()])
    return (each(out, targets) * weights).mean()


def with_a_margin(module, out, targets):
    margins = torch.zeros_like(out)
    margins[range(len(out)), targets.tolist()] = 0.5
    return of_torch(module, out - margins, targets)


def chosen_by_a_number(module, out, targets):
    """Another way than in the step before, by a bound that rises."""
    loss = of_torch(module, out, targets)
    return 0.5 * loss if loss.item() > (0, 100)[module.current_epoch] else loss


def chosen_by_another(module, out, targets):
    loss = of_torch(module, out, targets)
    return 3 * loss if float(loss.detach()) > (100, 0)[module.current_epoch] else loss


USED = {
    normalized: "item",
    chosen_by_a_number: "item",
    chosen_by_another: "__float__",
    by_its_size: "__bool__",
    weighed_one_by_one: "__int__",
    weighed_by_an_array: "numpy",
    with_a_margin: "tolist",
}


@mixings
@pytest.mark.parametrize("loss", USED, ids=lambda loss: loss.__name__)
def test_a_number_that_a_loss_depends_on_is_warned_of_once(mixing, loss):
    with pytest.warns(UserWarning, match=f"out of torch by {USED[loss]}: where a loss is computed") as told:
        fit(mixing, Theirs(loss))
    assert sum("out of torch" in str(warning.message) for warning in told) == 1


def logged(module, out, targets):
    loss = of_torch(module, out, targets)
    module.log("loss", loss.item())
    module.log("copy", loss.detach().item())
    module.history = [
        float(loss.detach()),
        f"{loss:.3f} {loss}",
        (out.argmax(1) == targets).float().mean().item(),
        targets.tolist(),
    ]
    return loss


def checked(module, out, targets):
    loss = of_torch(module, out, targets)
    if torch.isnan(loss):
        return None
    assert loss.isfinite()
    assert torch.isfinite(each(out, targets)).all()
    assert math.isfinite(loss.item())
    return loss


def measured(module, out, targets):
    torchmetrics.functional.f1_score(out[:, 0].sigmoid(), (targets > 0).long(), task="binary")
    loss = of_torch(module, out, targets)
    torchmetrics.MeanMetric()(loss)
    return loss + 0.5 * out.square().mean()


def counted(module, out, targets):
    known = targets != -100
    if not known.any():
        return None
    return each(out, targets).sum() / float(known.sum()) * (int(targets.max()) + 1)


def summed(module, out, targets):
    parts = {"one": of_torch(module, out, targets), "two": each(out * 2, targets).mean()}
    module.log("one", parts["one"].item())
    return sum(parts.values())


def scaled(module, out, targets):
    loss = of_torch(module, out, targets)
    module.log("loss", loss.item())
    module.share = getattr(module, "share", torch.tensor(0.5))
    return (0.25 + 0.5) * loss * module.share + 0.1 * loss


def shown_at_first(module, out, targets):
    loss = of_torch(module, out, targets)
    if module.current_epoch == 0:
        module.log("loss", loss.item())
    return 2 * loss


NOT_USED = [logged, checked, measured, counted, summed, scaled, shown_at_first]


@mixings
@pytest.mark.parametrize("loss", NOT_USED, ids=lambda loss: loss.__name__)
def test_numbers_for_logs_and_checks_are_not_warned_of(mixing, loss):
    module, plain = Theirs(loss), Theirs(loss)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        fit(mixing, module)
    fit(None, plain)
    assert not [str(warning.message) for warning in told if "out of torch" in str(warning.message)]
    assert not torch.allclose(module.layer.weight, plain.layer.weight)


def by_its_sign(_, out, targets):
    loss = F.cross_entropy(out, targets)
    return loss.sqrt() if loss > 0 else loss


def by_labels_that_there_are(_, out, targets):
    counts = torch.bincount(targets, minlength=CLASSES)
    return F.cross_entropy(out, targets, weight=1 / counts) / int(targets.max()) + int((targets == 2).sum())


@pytest.mark.parametrize("loss", [by_its_sign, by_labels_that_there_are], ids=lambda loss: loss.__name__)
def test_a_number_that_is_the_same_for_both_losses_leaves_them_right(loss):
    module, inputs, weight = mixed(loss)
    ends = [loss(Silent(module), module.layer(inputs), targets) for targets in (LABELS, LABELS.roll(1))]
    torch.testing.assert_close(module.seen[0], torch.lerp(*ends, weight).detach(), rtol=1e-5, atol=1e-6)


def by_what_is_left(_, out, targets):
    rest = targets[2:4].unique()
    spread = sum((rest == label).float().mean() for label in rest.unbind())
    return F.cross_entropy(out, targets) + spread * 0


def test_labels_of_one_end_may_be_others_in_number():
    with pytest.warns(UserWarning, match="something differentiable of them by add of what unbind made"):
        module, *_ = mixed(by_what_is_left)
    assert module.seen[0].isfinite()
