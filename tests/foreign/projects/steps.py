"""Hooks around the step that projects override: clipping, warm-up, masks, iterators, schedulers stepped by hand."""

import torch
import torch.nn.functional as F

from tests.foreign.project import BATCH_SIZE, Project, SomebodysClassifier


class FetchesBatches(SomebodysClassifier):
    """Is handed the iterator, and fetches as it likes."""

    def training_step(self, dataloader_iter):
        batch, _, _ = next(dataloader_iter)
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss, batch_size=BATCH_SIZE)
        return loss


class LooksAtClipping(SomebodysClassifier):
    """Looks at the gradients where they are clipped, and clips as always."""

    def __init__(self):
        super().__init__()
        self.norms = []

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
        self.norms.append(torch.nn.utils.get_total_norm(gradients).item())
        super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)


class WarmsUp(SomebodysClassifier):
    """Sets the learning rate before it steps."""

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * min(1.0, (self.trainer.global_step + 1) / 4)
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)


class MasksGradients(SomebodysClassifier):
    """Some rows aren't to be trained: their gradients are set to zero after backward."""

    def on_after_backward(self):
        self.network.first.weight.grad[:3] = 0

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SchedulesByHand(SomebodysClassifier):
    """Manual optimization with accumulation, clipping and a scheduler, all by hand."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer, scheduler = self.optimizers(), self.lr_schedulers()
        loss = super().training_step(batch, batch_idx)
        self.manual_backward(loss / 2)
        if batch_idx % 2:
            self.clip_gradients(optimizer, gradient_clip_val=1.0, gradient_clip_algorithm="norm")
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        return [optimizer], [torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=10)]


class Plateaus(SomebodysClassifier):
    """A scheduler that is stepped by the module when Lightning asks it to, by a metric."""

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"}}

    def lr_scheduler_step(self, scheduler, metric):
        scheduler.step(metric)


class SkipsBatches(SomebodysClassifier):
    """Returns nothing where a batch is of no use."""

    def training_step(self, batch, batch_idx):
        return None if batch_idx == 1 else super().training_step(batch, batch_idx)


class LineSearch(SomebodysClassifier):
    """Evaluates the loss several times a step."""

    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)


class ValidatesByTrainingStep(SomebodysClassifier):
    """One step for both: its loss is the one that is validated."""

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.training_step(batch, batch_idx))


class GradientSurgery(SomebodysClassifier):
    """Takes the gradients of two losses by itself, and projects one of them."""

    def training_step(self, batch, batch_idx):
        logits = self(batch[0])
        self.losses = F.cross_entropy(logits, batch[1]), 0.1 * logits.square().mean()
        return sum(self.losses)

    def backward(self, loss, *args, **kwargs):
        weights = [weight for weight in self.parameters() if weight.requires_grad]
        ours, others = (torch.autograd.grad(part, weights, retain_graph=True) for part in self.losses)
        del self.losses
        for weight, one, other in zip(weights, ours, others, strict=True):
            conflict = min(float((one * other).sum() / (one * one).sum().clamp(min=1e-12)), 0.0)
            weight.grad = one + other - conflict * one


class TwoStepOptimizer(torch.optim.Optimizer):
    """Climbs and descends by methods of its own; what steps is an optimizer within it."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})
        self.inner = torch.optim.SGD(self.param_groups, lr=lr)
        self.climbed = {}

    @torch.no_grad()
    def climb(self):
        weights = [weight for group in self.param_groups for weight in group["params"] if weight.grad is not None]
        self.climbed = {weight: 0.01 * weight.grad for weight in weights}
        for weight, way in self.climbed.items():
            weight.add_(way)
        self.zero_grad()

    @torch.no_grad()
    def descend(self):
        for weight, way in self.climbed.items():
            weight.sub_(way)
        self.inner.step()
        self.zero_grad()

    def step(self, closure=None):
        raise NotImplementedError("call climb and descend")


class StepsWithin(SomebodysClassifier):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        for method in (optimizer.climb, optimizer.descend):
            self.manual_backward(F.cross_entropy(self(batch[0]), batch[1]))
            method()

    def configure_optimizers(self):
        return TwoStepOptimizer(self.parameters(), lr=0.1)


PROJECTS = {
    "step with an iterator": Project(FetchesBatches),
    "looks at clipping": Project(LooksAtClipping, settings={"gradient_clip_val": 1.0}),
    "warm-up in optimizer_step": Project(WarmsUp),
    "gradient mask": Project(MasksGradients),
    "scheduler by hand": Project(SchedulesByHand),
    "plateau scheduler": Project(Plateaus),
    "skipped batches": Project(SkipsBatches),
    "LBFGS": Project(LineSearch),
    "validates by its training step": Project(ValidatesByTrainingStep),
    "gradient surgery": Project(GradientSurgery),
    "steps within an optimizer": Project(StepsWithin),
}
