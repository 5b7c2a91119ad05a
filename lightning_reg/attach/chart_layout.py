"""Which curves belong into one chart, on TensorBoard's page of custom scalars."""

from collections.abc import Callable, Sequence

from lightning.pytorch import Callback

__all__ = ["charts_for"]

Charts = dict[str, dict[str, list[str]]]


def charts_for(callbacks: Sequence[Callback]) -> Charts:
    """Returns the charts for which there will be curves: by category, then by title, regular expressions over tags.

    Args:
        callbacks: Of the trainer.

    >>> list(charts_for([]))
    ['Training']
    """
    charts: Charts = {}
    for category, title, tags, needed in _CHARTS:
        if needed is None or any(map(needed, callbacks)):
            charts.setdefault(category, {})[title] = [tags]
    return charts


def _is(*names: str, where: str = "") -> Callable[[Callback], bool]:
    """Returns what recognises a callback by its class, and by a setting that isn't empty."""

    def needed(callback: Callback) -> bool:
        return type(callback).__name__ in names and (not where or bool(getattr(callback, where, None)))

    return needed


def _is_penalty(callback: Callback) -> bool:
    return type(callback).__name__.endswith("Penalty")


def _is_proximal(callback: Callback) -> bool:
    return _is_penalty(callback) and bool(getattr(callback, "proximal", False))


def _is_scheduled(callback: Callback) -> bool:
    return getattr(callback, "schedule", None) is not None or _is("LearningRateMonitor", "GradientNoise")(callback)


_GAP, _MONITOR = _is("GeneralizationGap"), _is("GradientMonitor")
_ACTIVATIONS, _WEIGHTS = _is("ActivationStats"), _is("WeightDistribution")
# With what has to be there, None for nothing. TensorBoard matches from the beginning of a tag.
_CHARTS: tuple[tuple[str, str, str, Callable[[Callback], bool] | None], ...] = (
    ("Generalization", "loss, training and validation measured alike", r"gap(_\d+)?/(train|val)_loss$", _GAP),
    ("Generalization", "accuracy, measured alike", r"gap(_\d+)?/(train|val)_acc(uracy)?$", _GAP),
    ("Generalization", "gap: how much worse validation is", r"gap(_\d+)?/(?!train_|val_)", _GAP),
    ("Training", "loss", r"(train|val|valid)[/_]loss(_epoch)?$", None),
    ("Training", "accuracy", r"(train|val|valid)[/_]acc(uracy)?(_epoch)?$", None),
    ("Penalties", "value", r"penalty/(?!.*(_share|_zeros)$)", _is_penalty),
    ("Penalties", "share of the loss", r"penalty/.*_share$", _is_penalty),
    ("Penalties", "weights that are exactly zero", r"penalty/.*_zeros$", _is_proximal),
    ("Gradients", "norm before and after clipping", r"grad/(norm|norm_clipped|clip_threshold)(_opt.*)?$", _MONITOR),
    ("Gradients", "share of steps that are clipped", r"grad/clip_fraction", _MONITOR),
    ("Gradients", "norm by layer", r"grad/norm/", _is("GradientMonitor", where="layers")),
    ("Gradients", "update ratio", r"update/ratio", _is("GradientMonitor", where="update_ratio")),
    ("Gradients", "rise of the loss nearby", r"sharpness/loss_rise$", _is("SharpnessAwareMinimization")),
    ("Activations", "mean", r"activation/.*/mean$", _ACTIVATIONS),
    ("Activations", "standard deviation", r"activation/.*/std$", _ACTIVATIONS),
    ("Activations", "dead units", r"activation/.*/dead$", _ACTIVATIONS),
    ("Weights", "norm", r"weight/.*/norm$", _WEIGHTS),
    ("Weights", "exact zeros", r"weight/.*/zeros$", _WEIGHTS),
    ("Schedules", "strengths, rates and learning rates", r"(schedule/|dropout/|lr-|grad/noise$)", _is_scheduled),
)
