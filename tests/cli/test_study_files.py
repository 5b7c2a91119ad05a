"""Every study that is shipped runs, shorter still than its short form."""

from dataclasses import replace

import pytest

from lightning_reg.cli.unattended.fitting import fit
from lightning_reg.cli.unattended.plan import fits
from lightning_reg.studies.definition import read_study
from lightning_reg.studies.runs import computations, compute
from tests.conftest import REPOSITORY

STUDIES = sorted((REPOSITORY / "configs" / "studies").glob("*.yaml"))
TINY = {
    "trainer.max_epochs": 1,
    "trainer.check_val_every_n_epoch": 1,
    "trainer.limit_train_batches": 2,
    "trainer.limit_val_batches": 1,
    "trainer.limit_test_batches": 1,
}
SEVERAL = {"trainer.max_epochs": 3, "trainer.limit_train_batches": 5}  # cycles need some steps each


@pytest.fixture
def definition(request):
    found = read_study(request.param)
    return found.in_form(found.quick).with_seeds(1)


every_study = pytest.mark.parametrize("definition", STUDIES, ids=lambda path: path.stem, indirect=True)


@every_study
def test_study_runs(definition, tmp_path):
    if definition.function:
        run = computations(definition)[0]
        assert definition.study.metric in compute(run).metrics
        return
    has_cycles = definition.study.name in ("wave2_snapshots", "wave2_weights")
    runs = fits(definition.on({**TINY, **(SEVERAL if has_cycles else {})}))
    assert [run.variant for run in runs] == list(definition.study.variants)
    for run in runs:
        # Loading in a new process takes seconds, and is tested in tests/cli/test_study.py.
        collect = tuple(collector for collector in run.collect if collector != "reload")
        measured = fit(replace(run, collect=collect), tmp_path / run.key)
        assert definition.study.metric in measured.metrics
        assert set(measured.collected) == set(collect)


@every_study
def test_full_form_can_be_parsed_and_states_its_cost(definition, request):
    found = read_study(request.node.callspec.params["definition"])
    assert found.minutes is not None
    assert (found.minutes if found.quick.minutes is None else found.quick.minutes) <= 2
    assert "?" in found.study.question
    for form in (found, *map(found.in_form, found.data.values())):
        assert computations(form) if form.function else fits(form)


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_study_has_a_title(path):
    assert read_study(path).study.title != path.stem
