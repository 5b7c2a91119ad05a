"""Teachers that the step itself moves, with queues, centers and prototypes."""

import copy

import torch
import torch.nn.functional as F

from tests.foreign.project import Network, Project, SomebodysClassifier


@torch.no_grad()
def follow(teacher, student, momentum):
    for behind, ahead in zip(teacher.parameters(), student.parameters(), strict=True):
        behind.mul_(momentum).add_(ahead.detach(), alpha=1 - momentum)


class MomentumQueue(SomebodysClassifier):
    """Contrasts with a queue of keys that a slower encoder made; both change within the step (as MoCo)."""

    def __init__(self):
        super().__init__()
        self.encoder = self.network
        self.slow_encoder = copy.deepcopy(self.network).requires_grad_(False)
        self.register_buffer("queue", F.normalize(torch.randn(3, 16), dim=0))
        self.register_buffer("queue_at", torch.zeros(1, dtype=torch.long))

    @torch.no_grad()
    def enqueue(self, keys):
        at = int(self.queue_at)
        self.queue[:, at : at + len(keys)] = keys.T
        self.queue_at[0] = (at + len(keys)) % self.queue.shape[1]

    def training_step(self, batch, batch_idx):
        views = batch[0], batch[0] + 0.1
        queries = F.normalize(self.encoder(views[0]), dim=1)
        with torch.no_grad():
            follow(self.slow_encoder, self.encoder, 0.9)
            keys = F.normalize(self.slow_encoder(views[1]), dim=1)
        positive = (queries * keys).sum(1, keepdim=True)
        logits = torch.cat([positive, queries @ self.queue.clone().detach()], dim=1) / 0.2
        loss = F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long))
        self.enqueue(keys)
        self.log("train_loss", loss)
        return loss


class CenteredTeacher(SomebodysClassifier):
    """Distils into the student what a centered, sharpened teacher says (as DINO); the teacher moves after the batch."""

    def __init__(self):
        super().__init__()
        self.teacher = copy.deepcopy(self.network)
        for parameter in self.teacher.parameters():
            parameter.requires_grad = False
        self.register_buffer("center", torch.zeros(1, 3))

    def training_step(self, batch, batch_idx):
        with torch.no_grad():
            said = self.teacher(batch[0])
            target = ((said - self.center) / 0.4).softmax(1)
            self.center = 0.9 * self.center + 0.1 * said.mean(0, keepdim=True)  # another tensor each time
        loss = -(target * (self(batch[0]) / 0.5).log_softmax(1)).sum(1).mean()
        self.log("train_loss", loss)
        return loss

    def on_train_batch_end(self, outputs, batch, batch_idx):
        follow(self.teacher, self.network, 0.95)


class TeacherOutside(SomebodysClassifier):
    """Keeps its mean teacher in a list, no part of the checkpoint, and listens to it more and more."""

    def on_train_start(self):
        self.teachers = [copy.deepcopy(self.network).requires_grad_(False).eval()]
        self.ramp = 0.0

    def training_step(self, batch, batch_idx):
        self.ramp = min(1.0, self.ramp + 0.25)
        logits = self(batch[0])
        with torch.no_grad():
            target = self.teachers[0](batch[0])
        loss = F.cross_entropy(logits, batch[1]) + self.ramp * F.mse_loss(logits, target)
        self.log("train_loss", loss)
        return loss

    def on_before_zero_grad(self, optimizer):
        follow(self.teachers[0], self.network, 0.9)


class TeacherInInferenceMode(SomebodysClassifier):
    """A frozen teacher is asked under inference mode, and its answer is cached as a buffer."""

    def __init__(self):
        super().__init__()
        self.teacher = Network().requires_grad_(False).eval()
        self.register_buffer("said", torch.zeros(8, 3), persistent=False)

    def training_step(self, batch, batch_idx):
        with torch.inference_mode():
            self.said = self.teacher(batch[0])
        logits = self(batch[0])
        loss = F.cross_entropy(logits, batch[1]) + (logits - self.said.clone()).square().mean()
        self.log("train_loss", loss)
        return loss


class EncodedInInferenceMode(SomebodysClassifier):
    """The batch itself goes through a frozen encoder under inference mode before the step."""

    def __init__(self):
        super().__init__()
        self.encoder = Network(outputs=6).requires_grad_(False).eval()

    def on_after_batch_transfer(self, batch, dataloader_idx):
        with torch.inference_mode():
            return [batch[0] + self.encoder(batch[0]), batch[1] + 0]

    def training_step(self, batch, batch_idx):
        return super().training_step([part.clone() for part in batch], batch_idx)


PROJECTS = {
    "momentum encoder and queue": Project(MomentumQueue),
    "centered teacher": Project(CenteredTeacher),
    "teacher in a list": Project(TeacherOutside),
    "batch in inference mode": Project(EncodedInInferenceMode),
    "teacher in inference mode": Project(TeacherInInferenceMode),
}
