"""Mixing on somebody else's module: exact losses, hard labels for metrics, any container, clear refusals."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_reg.callbacks import BatchMixing, ConfidencePenalty
from lightning_reg.settings import SettingError
from lightning_reg.transforms import CutMix, Cutout, Mixup, MixupOrCutMix, RandomErasing
from tests.callbacks.mixed import CLASS_WEIGHTS, CLASSES, CONTAINERS, COUNT, LABELS, Theirs, by_hand, inputs_of, trained
from tests.conformance.problem import SomebodysModule, samples
from tests.helpers import quiet_trainer


def named(function, **settings):
    return pytest.param(lambda out, targets: function(out, targets, **settings), id=f"{function.__name__}-{settings}")


def log_probabilities(out, targets, **settings):
    return F.nll_loss(out.log_softmax(-1), targets, **settings)


def probabilities(out, targets, **settings):
    return F.binary_cross_entropy(out.sigmoid(), targets, **settings)


def named_loss(out, targets):
    return F.cross_entropy(input=out, target=targets)


OF_INDICES = [
    named(F.cross_entropy),
    named(F.cross_entropy, weight=CLASS_WEIGHTS),
    named(F.cross_entropy, label_smoothing=0.1, weight=CLASS_WEIGHTS),
    named(F.cross_entropy, ignore_index=2),
    named(F.cross_entropy, reduction="sum"),
    named(log_probabilities),
    named(log_probabilities, weight=CLASS_WEIGHTS),
    pytest.param(nn.CrossEntropyLoss(label_smoothing=0.2), id="CrossEntropyLoss"),
    pytest.param(lambda out, targets: F.cross_entropy(out, targets, reduction="none").mean(), id="by hand of each"),
    pytest.param(lambda out, targets: F.cross_entropy(out, F.one_hot(targets.long(), CLASSES).float()), id="one_hot"),
    pytest.param(lambda out, targets: F.cross_entropy(out, targets.view(-1)), id="view"),
]
OF_FLOATS = [
    named(F.cross_entropy),
    named(F.binary_cross_entropy_with_logits),
    named(F.binary_cross_entropy_with_logits, pos_weight=CLASS_WEIGHTS),
    named(probabilities),
    named(F.mse_loss),
    named(F.l1_loss, reduction="sum"),
    named(F.smooth_l1_loss),
    named(F.huber_loss),
    pytest.param(lambda out, targets: F.mse_loss(targets, out), id="the other way round"),
]


@pytest.mark.parametrize("container", CONTAINERS)
def test_any_container_is_mixed_and_metrics_keep_their_labels(container):
    module, (draw,), trainer = trained(Mixup(alpha=1.0), F.cross_entropy, LABELS, container=container)
    torch.testing.assert_close(module.losses[0], by_hand(F.cross_entropy, module, draw, LABELS), rtol=0, atol=1e-6)
    assert torch.equal(module.labels[0], LABELS)
    mixed = draw.change(inputs_of((4,)))
    hard = (module.network(mixed).argmax(-1) == LABELS).float().mean()
    torch.testing.assert_close(trainer.callback_metrics["accuracy"], hard)


def test_there_is_one_forward_pass_a_step_and_validation_is_left_alone():
    module, (draw,), trainer = trained(Mixup(alpha=1.0), F.cross_entropy, LABELS)
    sanity, training, validation = module.calls[0], module.calls[1], module.calls[2]
    assert len(module.calls) == 3
    assert torch.equal(sanity, inputs_of((4,)))
    assert torch.equal(validation, inputs_of((4,)))
    assert torch.equal(training, draw.change(inputs_of((4,))))
    plain = F.cross_entropy(module.network(inputs_of((4,))), LABELS)
    torch.testing.assert_close(trainer.callback_metrics["val_loss"], plain.detach())


@pytest.mark.parametrize("loss", OF_INDICES)
def test_losses_of_class_indices(loss):
    module, (draw,), _ = trained(Mixup(alpha=1.0), loss, LABELS)
    torch.testing.assert_close(module.losses[0], by_hand(loss, module, draw, LABELS), rtol=0, atol=1e-6)


@pytest.mark.parametrize("loss", OF_FLOATS)
def test_losses_of_floats(loss):
    targets = torch.rand(COUNT, CLASSES, generator=torch.Generator().manual_seed(1))
    module, (draw,), _ = trained(Mixup(alpha=1.0), loss, targets)
    torch.testing.assert_close(module.losses[0], by_hand(loss, module, draw, targets), rtol=0, atol=1e-6)


@pytest.mark.parametrize("ignored", [-100, 2])
@pytest.mark.parametrize("weight", [None, CLASS_WEIGHTS])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_each_sample_with_a_weight_of_its_own(reduction, weight, ignored):
    def loss(out, targets):
        settings = {"reduction": reduction, "weight": weight, "ignore_index": ignored, "label_smoothing": 0.1}
        return F.cross_entropy(out, targets, **settings).sum()

    module, (draw,), _ = trained(Mixup(alpha=1.0, per_sample=True), loss, LABELS)
    logits, partners = module.network(draw.change(inputs_of((4,)))), LABELS.roll(1)
    expected = 0.0
    for share, labels in ((1 - draw.minor_weight, LABELS), (draw.minor_weight, partners)):
        losses = F.cross_entropy(
            logits, labels, weight=weight, ignore_index=ignored, label_smoothing=0.1, reduction="none"
        )
        of_classes = torch.ones(CLASSES) if weight is None else weight
        counted = of_classes[labels] * (labels != ignored)
        expected = expected + (share * losses).sum() / (counted.sum() if reduction == "mean" else 1)
    torch.testing.assert_close(module.losses[0], expected.detach(), rtol=0, atol=1e-6)


def test_numbers_with_a_weight_for_each_sample():
    targets = torch.rand(COUNT, CLASSES, generator=torch.Generator().manual_seed(1))
    module, (draw,), _ = trained(Mixup(per_sample=True), F.mse_loss, targets)
    logits, w = module.network(draw.change(inputs_of((4,)))), draw.minor_weight[:, None]
    expected = ((1 - w) * (logits - targets) ** 2 + w * (logits - targets.roll(1, 0)) ** 2).mean()
    torch.testing.assert_close(module.losses[0], expected.detach(), rtol=0, atol=1e-6)


NUMBERS = torch.rand(COUNT, CLASSES, generator=torch.Generator().manual_seed(2)) + 0.1


@pytest.mark.parametrize(
    ("loss", "of_each", "divisor"),
    [
        (
            lambda out, targets: F.kl_div(out.log_softmax(-1), targets, reduction="batchmean"),
            lambda out, targets: F.kl_div(out.log_softmax(-1), targets, reduction="none"),
            COUNT,
        ),
        (
            lambda out, targets: F.binary_cross_entropy_with_logits(out, targets, weight=NUMBERS),
            lambda out, targets: F.binary_cross_entropy_with_logits(out, targets, reduction="none") * NUMBERS,
            COUNT * CLASSES,
        ),
        (
            lambda out, targets: F.cross_entropy(out, targets / targets.sum(1, keepdim=True), weight=CLASS_WEIGHTS),
            lambda out, targets: -(out.log_softmax(-1) * targets / targets.sum(1, keepdim=True) * CLASS_WEIGHTS),
            COUNT,
        ),
        (
            lambda out, targets: F.l1_loss(out, targets, size_average=False),
            lambda out, targets: (out - targets).abs(),
            1,
        ),
    ],
    ids=["batchmean", "weighted elements", "weighted probabilities", "older words"],
)
@pytest.mark.filterwarnings("ignore:size_average and reduce args will be deprecated:UserWarning")
def test_what_a_mean_of_each_samples_share_divides_by(loss, of_each, divisor):
    module, (draw,), _ = trained(Mixup(per_sample=True), loss, NUMBERS)
    logits, w = module.network(draw.change(inputs_of((4,)))), draw.minor_weight[:, None]
    expected = ((1 - w) * of_each(logits, NUMBERS) + w * of_each(logits, NUMBERS.roll(1, 0))).sum() / divisor
    torch.testing.assert_close(module.losses[0], expected.detach(), rtol=1e-6, atol=1e-6)


def test_weighted_elements_divide_by_their_weights():
    def weighted(out, targets):
        return F.mse_loss(out, targets, weight=NUMBERS)

    module, (draw,), _ = trained(Mixup(per_sample=True), weighted, NUMBERS)
    logits, w = module.network(draw.change(inputs_of((4,)))), draw.minor_weight[:, None]
    own, other = ((logits - numbers) ** 2 * NUMBERS for numbers in (NUMBERS, NUMBERS.roll(1, 0)))
    expected = ((1 - w) * own + w * other).sum() / NUMBERS.sum()
    torch.testing.assert_close(module.losses[0], expected.detach(), rtol=0, atol=1e-6)


def test_targets_that_are_changed_in_place_are_refused_and_copies_are_mixed():
    def in_place(out, targets):
        return F.mse_loss(out, targets.mul_(2))

    with pytest.raises(SettingError, match="targets must not be changed in place in training_step with BatchMixing"):
        trained(Mixup(), in_place, NUMBERS)

    def doubled(out, targets):
        return F.mse_loss(out, targets.clone() * 2)

    module, (draw,), _ = trained(Mixup(), doubled, NUMBERS)
    torch.testing.assert_close(module.losses[0], by_hand(doubled, module, draw, NUMBERS), rtol=0, atol=1e-6)


def of_class_frequencies(out, targets):
    counts = targets.long().sum(0) + 1
    return F.mse_loss(out, targets, reduction="sum") + F.binary_cross_entropy_with_logits(
        out, (targets > 0.5).float(), pos_weight=counts / targets.sum()
    )


@pytest.mark.parametrize(
    "loss",
    [
        lambda out, targets: F.mse_loss(out.flatten(), targets.flatten()),
        lambda out, targets: F.mse_loss(out, (targets - targets.mean(1, keepdim=True)) / targets.amax()),
        lambda out, targets: F.mse_loss(out, torch.where(targets > 0.5, 1.0, -targets)),
        lambda out, targets: F.cross_entropy(out, 0.8 * targets + 0.2 / CLASSES),
        of_class_frequencies,
        lambda out, targets: F.mse_loss(out.abs(), torch.log1p(targets)).sqrt(),
        lambda out, targets: F.mse_loss(out.T, targets.T),
        lambda out, targets: F.mse_loss(torch.stack([out, -out]), torch.stack([targets, -targets])),
        lambda out, targets: F.mse_loss(out[:, :1], targets.split([1, CLASSES - 1], 1)[0]),
        lambda out, targets: F.cross_entropy(out, F.softmax(targets, dim=1)),
        lambda out, targets: F.cross_entropy(out, targets.argmax(1)),
        lambda out, targets: F.mse_loss(out, F.linear(targets, torch.eye(CLASSES).roll(1, 0))),
    ],
    ids=[
        *("flat", "standardized", "by a condition", "smoothed", "frequencies"),
        *("logarithm", "transposed", "stacked", "split", "softmax", "class", "projected"),
    ],
)
def test_what_is_made_of_the_targets_is_made_of_their_partners(loss):
    module, (draw,), _ = trained(Mixup(), loss, NUMBERS)
    torch.testing.assert_close(module.losses[0], by_hand(loss, module, draw, NUMBERS), rtol=1e-6, atol=1e-6)


def noisy(out, targets):
    return F.mse_loss(out, torch.bernoulli(targets / CLASSES)[:, None].expand_as(out))


def picked(out, targets):
    kept = targets > 0
    return F.cross_entropy(out[kept], targets[kept])


def by_matrix(out, targets):
    return F.mse_loss(out, F.one_hot(targets, CLASSES).float() @ torch.eye(CLASSES))


@pytest.mark.parametrize(
    ("loss", "maker", "settings"),
    [
        (noisy, "bernoulli", {}),
        (picked, "getitem", {"per_sample": True}),
        (by_matrix, "matmul", {"per_sample": True}),
    ],
)
def test_a_loss_of_what_cannot_be_made_of_the_partners_is_refused(loss, maker, settings):
    with pytest.raises(SettingError, match=f"of what _*{maker}_* made"):
        trained(Mixup(**settings), loss, LABELS)


def test_samples_with_weights_of_their_own_must_stay_in_place():
    with pytest.raises(SettingError, match="mse_loss of what t made"):
        trained(Mixup(per_sample=True), lambda out, targets: F.mse_loss(out.t(), targets.t()), NUMBERS)


def test_a_term_of_ours_is_not_taken_for_a_part_of_the_loss():
    """It looks at which targets count, and a warning would be an error here."""
    loader = DataLoader(list(zip(inputs_of((4,)), LABELS, strict=True)), batch_size=COUNT)
    for callbacks in (
        [BatchMixing(Mixup()), ConfidencePenalty(weight=0.1)],
        [ConfidencePenalty(weight=0.1), BatchMixing(Mixup())],
    ):
        module = Theirs(F.cross_entropy, tuple, (4,))
        quiet_trainer(*callbacks).fit(module, loader, loader)
        assert len(module.losses) == 1


def test_two_mix_one_after_the_other():
    loader = DataLoader(list(zip(inputs_of((4,)), LABELS, strict=True)), batch_size=COUNT)
    draws = []

    class Recorded(Mixup):
        def drawn(self, inputs, *, stream):
            draws.append(super().drawn(inputs, stream=stream))
            return draws[-1]

    module = Theirs(F.cross_entropy, tuple, (4,))
    quiet_trainer(BatchMixing(Recorded()), BatchMixing(Recorded()), max_epochs=1).fit(module, loader, loader)
    outer, inner = draws
    logits = module.network(inner.change(outer.change(inputs_of((4,)))))
    expected = 0.0
    for i, w in enumerate((1 - outer.minor_weight, outer.minor_weight)):
        for j, v in enumerate((1 - inner.minor_weight, inner.minor_weight)):
            expected = expected + w * v * F.cross_entropy(logits, LABELS.roll(i + j))
    torch.testing.assert_close(module.losses[0], expected.detach(), rtol=0, atol=1e-6)


def test_a_metric_may_change_a_copy_in_place():
    def with_a_metric(out, targets):
        known = targets.clone()
        known[known == 2] = 0
        (out.detach().argmax(1) == known).float().mean()
        return F.cross_entropy(out, targets)

    module, (draw,), _ = trained(Mixup(), with_a_metric, LABELS)
    torch.testing.assert_close(module.losses[0], by_hand(F.cross_entropy, module, draw, LABELS), rtol=0, atol=1e-6)


def test_pixels_as_samples_of_their_own_need_one_weight_a_batch():
    with pytest.raises(SettingError, match=r"per_sample must be False .* the batch has \d+"):
        trained(Mixup(per_sample=True), lambda out, targets: F.mse_loss(out.flatten(), targets.flatten()), NUMBERS)


@pytest.mark.parametrize("mix", [CutMix(), CutMix(per_sample=False, alpha=0.3), MixupOrCutMix()], ids=repr)
def test_images(mix):
    module, (draw,), _ = trained(mix, F.cross_entropy, LABELS, shape=(1, 4, 4))
    expected = by_hand(F.cross_entropy, module, draw, LABELS, (1, 4, 4))
    torch.testing.assert_close(module.losses[0], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("mix", [Cutout(size=2), RandomErasing(prob=1.0, scale=(0.2, 0.5))], ids=repr)
def test_erasing_leaves_the_loss_as_it_is_even_a_custom_one(mix):
    def custom(out, targets):
        return -out.log_softmax(-1).gather(1, targets[:, None]).mean()

    module, (draw,), _ = trained(mix, custom, LABELS, shape=(1, 4, 4))
    changed = draw.change(inputs_of((1, 4, 4)))
    assert (changed == 0).any()
    torch.testing.assert_close(module.losses[0], F.cross_entropy(module.network(changed), LABELS).detach())


def custom(out, targets):
    return -out.log_softmax(-1).gather(1, targets.unsqueeze(1)).mean()


def test_a_loss_that_cannot_be_mixed_is_refused_at_the_first_batch_even_if_that_is_not_mixed():
    for prob in (1.0, 0.0):
        with pytest.raises(SettingError, match=r"called none of cross_entropy, .* with them, but gather of them"):
            trained(Mixup(prob=prob), custom, LABELS)


def taken_in(out, targets):
    taken = F.one_hot(targets, CLASSES).float() @ torch.eye(CLASSES).requires_grad_()
    return F.cross_entropy(out, targets) + (out * taken).mean()


def test_a_part_of_the_loss_that_is_not_mixed_is_warned_of():
    with pytest.warns(UserWarning, match="makes something differentiable of them by matmul"):
        trained(Mixup(), taken_in, LABELS)


def test_a_loss_of_further_labels_that_are_not_mixed_is_warned_of():
    class TwoTasks(SomebodysModule):
        def training_step(self, batch, batch_idx):
            logits = self.network(batch[0])
            return F.cross_entropy(logits, batch[1]) + F.cross_entropy(logits, batch[2])

    inputs, labels = samples().tensors
    loader = DataLoader(TensorDataset(inputs, labels, labels.flip(0)), batch_size=8)
    with pytest.warns(UserWarning, match="also computes cross_entropy of another part of the batch, which isn't mixed"):
        quiet_trainer(BatchMixing(Mixup(), seed=1)).fit(TwoTasks(), loader, loader)


def test_mixing_stops_after_so_many_epochs():
    module, draws, _ = trained(Mixup(), F.cross_entropy, LABELS, max_epochs=3, epochs=1)
    assert len(draws) == 1
    plain = F.cross_entropy(module.network(inputs_of((4,))), LABELS).detach()
    torch.testing.assert_close(torch.stack(module.losses[1:]), plain.expand(2))


def test_the_users_batch_is_left_alone():
    batch = {"x": inputs_of((4,)), "y": LABELS.clone()}
    before = dict(batch)
    contents = {name: part.clone() for name, part in batch.items()}
    module = Theirs(F.cross_entropy, lambda batch: (batch["x"], batch["y"]), (4,))
    trainer = quiet_trainer(BatchMixing(Mixup(), input_key="x", target_key="y"), max_epochs=2)
    loader = DataLoader([batch], batch_size=None)
    trainer.fit(module, loader, loader)
    assert all(batch[name] is before[name] for name in batch)
    assert all(torch.equal(batch[name], contents[name]) for name in batch)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"input_key": "image"}, "input_key must be one of 'x', 'y', 'none', the batch's keys, but is 'image'"),
        ({"input_key": "x", "target_key": "label"}, "target_key must be one of 'x', 'y', 'none', the batch's keys"),
        (
            {"input_key": "x", "target_key": "none"},
            "target_key must lead to a tensor, but at 'none' the batch has nothing",
        ),
        ({"input_key": "y", "target_key": "y"}, "inputs must be of a floating dtype"),
    ],
)
def test_parts_that_are_not_there(settings, message):
    batch = {"x": inputs_of((4,)), "y": LABELS}
    loader = DataLoader([batch | {"none": None}], batch_size=None)
    module = Theirs(F.cross_entropy, lambda batch: (batch["x"], batch["y"]), (4,))
    with pytest.raises(SettingError, match=message):
        quiet_trainer(BatchMixing(Mixup(), **settings)).fit(module, loader, DataLoader([batch], batch_size=None))


def test_settings_out_of_range():
    for settings, message in [
        ({"mix": "mixup"}, "mix must be a transform"),
        ({"mix": Mixup(), "epochs": -1}, "epochs must be a whole number of at least 0"),
        ({"mix": Mixup(), "input_key": 1.5}, "input_key must be an index, a name or a getter and a setter"),
    ]:
        with pytest.raises(SettingError, match=message):
            BatchMixing(**settings)


@pytest.mark.parametrize("mix", [Mixup(), Mixup(per_sample=True), Mixup(prob=0.0)], ids=repr)
def test_a_label_that_is_none_of_a_class_is_named_with_its_sample(mix):
    def loader(*labels):
        return DataLoader([(inputs_of((4,)), torch.tensor(labels))], batch_size=None)

    module = Theirs(named_loss, lambda batch: batch, (4,))
    with pytest.raises(SettingError, match=r"labels must be in \[0, 3\), but sample 4 of the batch has 7"):
        quiet_trainer(BatchMixing(mix)).fit(module, loader(0, -100, 2, 2, 7, 0), loader(*LABELS.tolist()))


def test_cutmix_needs_images():
    with pytest.raises(SettingError, match=r"inputs must be images \(N, C, H, W\) for CutMix, but have the shape"):
        trained(CutMix(), F.cross_entropy, LABELS)
