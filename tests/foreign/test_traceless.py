"""What only watches, or moves by nothing, leaves a project's own state, weights and metrics as they are without it."""

import pytest

from lightning_reg.settings import SettingError
from tests.foreign.attached import NAMES, TRACELESS
from tests.foreign.fitting import PROJECTS, differences, fit_or_refusal, fitted_plainly, state_of
from tests.foreign.refusals import may_refuse

# The second pass of a climb that is too short for float32 finds the same gradients but for their rounding.
ROUNDING = 1e-4


@pytest.mark.parametrize("project", PROJECTS)
@pytest.mark.parametrize("name", TRACELESS)
def test_leaves_no_trace(name, project):
    plain = fitted_plainly(project)
    outcome = fit_or_refusal(PROJECTS[project], TRACELESS[name](PROJECTS[project]))
    if isinstance(outcome, SettingError):
        assert "\n" not in str(outcome)
        assert may_refuse(name, project, str(outcome)), outcome
        return
    if name in NAMES:  # it watches, and shows what it sees, or says why it doesn't
        assert outcome.tags - plain.tags or outcome.said - plain.said
    averages = name.startswith("StochasticWeightAverage")  # BatchNorm's statistics are recomputed for the mean
    tolerance = ROUNDING if name.startswith(("Sharpness", "Exponential", "Stochastic")) else 0.0
    one, other = (state_of(fitted.module, statistics=not averages) for fitted in (plain, outcome))
    assert not differences(one, other, tolerance)
    for tag in {tag for _, tag, _ in plain.logged} - {"epoch"}:  # which Lightning adds to whatever is logged
        before, after = plain.values_of(tag), outcome.values_of(tag)
        assert [step for step, _ in before] == [step for step, _ in after]
        assert [value for _, value in after] == pytest.approx(
            [value for _, value in before], rel=tolerance, abs=tolerance
        )
